"""`dcpo show`: groups of a run for people who want to read what their model writes."""

import argparse
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from statistics import fmean

from pydantic import ValidationError
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.metrics.live_table import plain_table
from dcpo_async.run_folder import RunFolder
from learner.ledger.copy import open_copy
from learner.ledger.reader import Start
from learner.reports.inspection import Selection, ShownGroup, ShownResponse, shown_groups

NUM_GROUPS = 3
MAX_CHARS = 1000
STATES = {
    "leased": "an actor is answering it",
    "accepted": "waits for its step",
    "too_old": "too old, never trained",
    "discarded": "discarded for its equal rewards, never trained",
    "quarantined": "its prompt is quarantined",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input."""
    try:
        _show(_parser().parse_args(argv))
    except DcpoError as error:
        print(f"dcpo show: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # The reader has seen enough; without this, Python would complain once more as it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dcpo show", description="Groups of a run that is running or has ended.")
    parser.add_argument("run", type=Path, help="run folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="groups that this step trains, as metrics.jsonl counts")
    which.add_argument("--prompt", metavar="ID", help="newest visits of a prompt; the beginning of its id is enough")
    which.add_argument("--position", type=int, help="the group at this place of the prompt order")
    which.add_argument("--starts", action="store_true", help="every start of the learner, and what it changed")
    outcome = parser.add_mutually_exclusive_group()
    for name, meaning in (("correct", "all"), ("wrong", "none"), ("mixed", "some, but not all")):
        outcome.add_argument(
            f"--{name}",
            dest="outcome",
            action="store_const",
            const=name,
            help=f"groups with {meaning} of their responses right",
        )
    parser.add_argument("--visits", action="store_true", help="with --prompt: one line for each visit")
    parser.add_argument("--count", type=int, help=f"at most so many (default {NUM_GROUPS}; with --visits all)")
    parser.add_argument("--seed", type=int, default=0, help="another sample of a step's groups (default 0)")
    parser.add_argument(
        "--max-chars",
        type=int,
        default=MAX_CHARS,
        help=f"longer texts lose their middle (default {MAX_CHARS}, 0 shows all)",
    )
    parser.add_argument("--all", action="store_true", help="every response, also where others answer the same")
    parser.add_argument("--json", action="store_true", help="one object a line for each group, texts whole")
    return parser


def _show(options: argparse.Namespace) -> None:
    if options.visits and options.prompt is None:
        raise ConfigError("--visits shows one prompt over time: name it by --prompt ID")
    if options.count is not None and options.count < 1:
        raise ConfigError(f"--count {options.count}: must be at least 1")
    if options.max_chars < 0:
        raise ConfigError(f"--max-chars {options.max_chars}: must be at least 1, or 0 for whole texts")
    count = options.count or (sys.maxsize if options.visits else NUM_GROUPS)
    selection = Selection(options.position, options.step, options.prompt, options.outcome, count, options.seed)
    # What a model wrote may hold what a terminal's encoding does not.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with open_copy(RunFolder(options.run).ledger) as reader:
        if options.starts:
            _print_starts(reader.starts(), as_json=options.json)
            return
        groups = shown_groups(reader, read_config(RunFolder(options.run).config), selection)
        first = next(groups, None)
        if first is None:
            print(f"dcpo show: {options.run} has no such group yet", file=sys.stderr)
        else:
            _print(chain([first], groups), options)
    sys.stdout.flush()


def _print(groups: Iterable[ShownGroup], options: argparse.Namespace) -> None:
    if options.json:
        for group in groups:
            print(json.dumps(group.as_json()))
        return
    console = Console(highlight=False)
    if options.visits:
        console.print(_visits_table(list(groups), options.max_chars))
        return
    for group in groups:
        console.print(_group(group, options.max_chars, is_whole=options.all))


def _print_starts(starts: Sequence[Start], *, as_json: bool) -> None:
    for start in starts:
        if as_json:
            print(json.dumps(asdict(start)))
        else:
            what = "the settings that were kept first" if start == starts[0] else "; ".join(start.changes)
            print(
                f"start {start.incarnation}, {start.began_at}, {start.release}: {readable(what or 'nothing changed')}"
            )


def read_config(path: Path) -> RunConfig:
    """The settings that the run was started with last."""
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; a learner writes it as it starts") from None
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {name}: {first['msg']}; show the run with the release that ran it") from None


# ---- for people


def _group(group: ShownGroup, max_chars: int, *, is_whole: bool) -> RenderableType:
    visit = group.visit
    where = f"step {group.step}" if group.step else STATES[visit.state]
    title = Text(f"{where} · prompt {visit.prompt_id} · visit {visit.visit} · position {visit.position}", style="bold")
    return Group(
        Rule(title, align="left", style="dim"),
        Text(readable(group.problem, max_chars) if group.problem else "(an older learner did not keep the problem)"),
        Text(" · ".join(_summary(group)), style="dim"),
        *_responses(list(enumerate(group.responses, start=1)), max_chars, is_whole=is_whole),
        Text(),
    )


def _summary(group: ShownGroup) -> Iterator[str]:
    if group.reference is not None:
        yield f"reference {readable(group.reference)}"
    if group.responses:
        yield f"{group.num_correct} of {len(group.responses)} right"
    if group.lags:
        low, high = group.lags
        yield f"lag {low}" if low == high else f"lag {low} to {high}"
    stats = group.stats
    yield f"prompt so far: visits {stats.visits}, rewards {stats.count}, mean {stats.mean:.3g}, std {group.std:.3g}"
    if group.quarantine is not None:
        yield f"quarantined: {readable(group.quarantine)}; `dcpo release` lifts it"
    if group.is_released:
        yield "the texts are deleted: every checkpoint that is kept contains this step"


def _responses(
    numbered: Sequence[tuple[int, ShownResponse]], max_chars: int, *, is_whole: bool
) -> Iterator[RenderableType]:
    """Each answer once with the text of its first response, wrong ones first; or every response in its place."""
    if is_whole:
        yield from (_response(number, response, max_chars) for number, response in numbered)
        return
    for (number, response), *others in same_answers(numbered):
        yield _response(number, response, max_chars)
        if others:
            named = ", ".join(f"#{other}" for other, _ in others)
            yield Padding.indent(Text(f"the same answer: {named} (--all shows them)", style="dim"), 3)


def same_answers(numbered: Sequence[tuple[int, ShownResponse]]) -> list[list[tuple[int, ShownResponse]]]:
    """Responses by what they answer: wrong answers before right ones, those that many gave before others.

    A response without an answer, or whose text is gone, stands for itself.
    """
    found: dict[tuple[bool, str | int], list[tuple[int, ShownResponse]]] = {}
    for number, response in numbered:
        own = number if response.answer is None else response.answer
        found.setdefault((response.is_correct, own), []).append((number, response))
    return [found[key] for key in sorted(found, key=lambda key: (key[0], -len(found[key]), found[key][0][0]))]


def _response(number: int, shown: ShownResponse, max_chars: int) -> RenderableType:
    style = "green" if shown.is_correct else "red"
    head = Text.assemble((f"#{number} ", "bold"), (" · ".join(_response_summary(shown)), style))
    if shown.response is None:
        return head
    return Group(head, Padding.indent(Text(readable(shown.response.text, max_chars)), 3))


def _response_summary(shown: ShownResponse) -> Iterator[str]:
    yield "right" if shown.is_correct else "wrong"
    if shown.response is not None:
        yield str(shown.reason)
        yield "no answer" if shown.answer is None else f"answer {readable(shown.answer, 80)}"
    yield f"reward {shown.reward:g}"
    yield f"advantage {shown.advantage:+.4g}"
    if shown.response is not None:
        length = len(shown.response.token_ids)
        yield f"length {length}, {'cut off' if shown.response.finish_reason == 'length' else 'stopped'}"
        yield "weights " + ", ".join(
            f"{version}" if num_tokens == length else f"{version} for {num_tokens}"
            for version, num_tokens in shown.response.segments
        )


def _visits_table(groups: Sequence[ShownGroup], max_chars: int) -> RenderableType:
    first = groups[0]
    numbers = ("visit", "step", "position", "weights", "right", "mean", "advantages", "length", "cut")
    table = plain_table(*numbers, "answers", right=numbers)
    for group in groups:
        table.add_row(*map(Text, _visit_cells(group)))
    problem = readable(first.problem, max_chars) if first.problem else ""
    reference = f"reference {readable(first.reference)}" if first.reference else ""
    return Group(
        Rule(Text(f"prompt {first.visit.prompt_id}", style="bold"), align="left", style="dim"),
        *(Text(line) for line in (problem, reference) if line),
        table,
    )


def _visit_cells(group: ShownGroup) -> list[str]:
    responses = [shown.response for shown in group.responses if shown.response is not None]
    versions = [segment.weights_version for response in responses for segment in response.segments]
    cells = [str(group.visit.visit), str(group.step or "–"), str(group.visit.position), _span(versions)]
    if not group.responses:
        return [*cells, *["–"] * 5, STATES[group.visit.state]]
    cells += [f"{group.num_correct}/{len(group.responses)}", f"{group.stats.mean:.3g}"]
    cells += [_span([shown.advantage for shown in group.responses])]
    if not responses:
        return [*cells, "–", "–", "deleted"]
    num_cut = sum(response.finish_reason == "length" for response in responses)
    answers = Counter("none" if shown.answer is None else readable(shown.answer, 40) for shown in group.responses)
    counted = ", ".join(answer if times == 1 else f"{answer} ×{times}" for answer, times in answers.most_common())
    return [*cells, f"{fmean(len(response.token_ids) for response in responses):.1f}", str(num_cut), counted]


def _span(values: Sequence[float]) -> str:
    """Smallest and largest: `_span([3, 1])` is "1…3"."""
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g}…{high:.3g}"


def readable(text: str, max_chars: int = 0) -> str:
    r"""What a terminal can show: control characters as escapes, and where it is too long, no middle.

    The end stays because answers stand there. readable("a\x1bb") is r"a\x1bb"; with 4 characters, "abcdefgh" is
    "ab[… 4 characters …]gh"; 0 leaves the length as it is.
    """
    if max_chars and len(text) > max_chars:
        head, tail = (max_chars + 1) // 2, max_chars // 2
        text = f"{text[:head]}[… {len(text) - max_chars} characters …]{text[len(text) - tail :]}"
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )


if __name__ == "__main__":
    main()
