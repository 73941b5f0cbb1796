"""`dcpo eval`: its command line, and what becomes of a failure; what it does is imported once that is read."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.logging import RichHandler

from actor.engine.choice import add_engine_arguments
from dcpo_async.config import DataSettings, GradingSettings
from dcpo_async.errors import DcpoError
from dcpo_async.prompts.presets import PRESETS

EXTRACTIONS = get_args(GradingSettings.model_fields["extraction"].annotation)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input, 1 on a failure, 130 when interrupted: the same command goes on then."""
    options, console = _parser().parse_args(argv), Console(stderr=True)
    # Bars and lines of the log share the terminal.
    handler = RichHandler(console=console, show_path=False) if console.is_terminal else None
    form = "%(message)s" if handler else "%(asctime)s %(name)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", handlers=[handler] if handler else None)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # It brings torch, which a look at the options must not cost.
    from actor.evaluation.command import measure

    try:
        asyncio.run(measure(options, console))
    except DcpoError as error:
        print(f"dcpo eval: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("dcpo eval: interrupted; the same command goes on where it stood", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _parser() -> argparse.ArgumentParser:
    data, grading = DataSettings(), GradingSettings()
    parser = argparse.ArgumentParser(
        prog="dcpo eval",
        description="Accuracy of models, or of a running learner's weights, on problem sets. The same command goes on "
        "where an earlier one was ended.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="[NAME=]FOLDER or hub id; RUN/weights/vNNNNNNNN too")
    parser.add_argument("--learner", help="instead of models: address of a running learner, whose weights are measured")
    what = parser.add_argument_group("problems")
    what.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="SET",
        help=f"{', '.join(PRESETS)}; PRESET=FILE for a local copy; a .jsonl, .json or .parquet file; a hub id",
    )
    what.add_argument("--problem-field", help="of files and hub ids (default problem)")
    what.add_argument("--answer-field", help="of files and hub ids (default answer)")
    what.add_argument("--answer-pattern", help="regular expression with one group that finds the answer in its field")
    what.add_argument("--metadata-fields", nargs="+", default=[], metavar="FIELD", help="for --reward, or the run's")
    what.add_argument("--split", help="of hub ids")
    what.add_argument("--subset", help="configuration of a hub id")
    what.add_argument("--trained-on", metavar="SET", help="warn of problems that stand in this training set")
    what.add_argument("--limit", type=int, help="measure on the first so many problems of each set")
    how = parser.add_argument_group("responses")
    how.add_argument("--samples", type=int, default=32, help="n of Avg@n (default 32); 0 for greedy alone")
    how.add_argument("--no-greedy", dest="greedy", action="store_false", help="leave out Avg@1")
    how.add_argument("--temperature", type=float, default=1.0, help="of the samples; top-p is 1 (default 1)")
    how.add_argument("--max-prompt-tokens", type=int, default=1024, help="longer prompts are left out (default 1024)")
    how.add_argument("--max-response-tokens", type=int, default=3072, help="default 3072")
    how.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")
    how.add_argument("--system-prompt", default=data.system_prompt, help="'' for none (default: that of training)")
    how.add_argument("--prompt-template", default=data.prompt_template, help="{problem} stands for the problem")
    how.add_argument("--template-arguments", default="{}", metavar="JSON", help="of the chat template, as a table")
    how.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a response; as often as needed")
    how.add_argument("--stop-token-id", action="append", type=int, default=[], metavar="ID", help="ends one as well")
    how.add_argument(
        "--extraction",
        choices=EXTRACTIONS,
        help=f"default {grading.extraction}; of a run that is followed the grading is its own, whatever it is",
    )
    how.add_argument("--reward", metavar="MODULE:FUNCTION", help="grade by an own reward; of a run that is its own")
    how.add_argument("--reward-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of --reward (default 0 1)")
    where = parser.add_argument_group("engine")
    where.add_argument("--gpus", help="GPUs that the engine spans, such as 0 or 0-3; without it the CPU")
    where.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto is bfloat16 on GPUs"
    )
    where.add_argument("--in-flight", type=int, help="responses generated at once (default 256, on a CPU 32)")
    add_engine_arguments(parser)
    out = parser.add_argument_group("results")
    out.add_argument("--out", type=Path, default=Path("runs/eval"), help="folder of the results (default runs/eval)")
    out.add_argument("--overwrite", action="store_true", help="remove the results that are there")
    run = parser.add_argument_group("with --learner")
    run.add_argument("--every-steps", type=int, default=1, help="measure the first version on or after each multiple")
    run.add_argument("--once", action="store_true", help="measure the newest version and end")
    run.add_argument("--keep-best", action="store_true", help="keep a copy of the best version, as OUT/best")
    run.add_argument("--join-seconds", type=float, default=300.0, help="give up when no learner answers (default 300)")
    run.add_argument("--keys", type=Path, help="file of this peer's CURVE keys, that `dcpo keygen` made")
    run.add_argument("--insecure", action="store_true", help="reach a learner off loopback without keys")
    return parser


if __name__ == "__main__":
    main()
