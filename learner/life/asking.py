"""`dcpo set`, `dcpo drain`, `dcpo stop`: asks the learner at work on a run, and says whether it took it."""

import argparse
import contextlib
import getpass
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcpo_async.config.live import require_reloadable
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.processes import be_private
from dcpo_async.run_folder import REQUESTS, RunFolder
from learner.ledger.copy import open_copy
from learner.ledger.lock import holder
from learner.life.events import events

REQUEST, TAKEN, ANSWER = ".request", ".taken", ".answer"
ANSWER_SECONDS = 60.0
"""A learner looks twice a second; one that is swapped out or stopped does not."""
LOOK_SECONDS, TELL_SECONDS = 0.2, 5.0


class _UnansweredError(DcpoError):
    """A learner is at work, and says nothing."""


class _LostError(DcpoError):
    """An actor that was to finish what it held did not come to it."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 when the learner has taken it, 2 where it has not or there is none, 1 where it is mute."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(words)
    be_private()
    try:
        options.command(options)
    except DcpoError as error:
        print(f"dcpo {options.name}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dcpo")
    commands = parser.add_subparsers(required=True, dest="name")
    change = commands.add_parser(
        "set",
        description="Change settings of a run while it goes on. Each change is kept in the ledger with the step from "
        "which it holds, also after a crash.",
    )
    change.add_argument("run", type=Path, help="run folder")
    change.add_argument("settings", nargs="+", metavar="NAME=VALUE", help="such as training.learning_rate=5e-7")
    change.add_argument("--at-step", type=int, metavar="N", help="trainer ranks take it over after N steps")
    change.set_defaults(command=_set)
    drain = commands.add_parser(
        "drain",
        description="Let actors finish what they hold and leave. Of a whole run, the learner stops after that.",
    )
    drain.add_argument("run", type=Path, help="run folder")
    drain.add_argument("actor", nargs="?", help="one of them alone, as dcpo status names it; the run goes on")
    drain.set_defaults(command=_drain)
    stop = commands.add_parser(
        "stop", description="Stop a run: the trainer ends its batch and writes a checkpoint. Waits until it is done."
    )
    stop.add_argument("run", type=Path, help="run folder")
    stop.add_argument("--keep-actors", action="store_true", help="they wait for the learner; else they end")
    stop.set_defaults(command=_stop)
    return parser


def ask(run: RunFolder, kind: str, **content: Any) -> Mapping[str, Any]:
    """What the learner at work on a run answers to a request that it has taken.

    Raises:
        ConfigError: no learner is at work on it, or it refuses.
        DcpoError: it has not looked within ANSWER_SECONDS, or it has ended before it answered.
    """
    _require_learner(run)
    path = run.path / REQUESTS / f"{time.time_ns():020d}-{secrets.token_hex(4)}{REQUEST}"
    answer_path = path.with_suffix(ANSWER)
    try:
        write_json(path, {"kind": kind, "content": content})
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; ask as the user of the learner") from None
    deadline, taken_path = time.monotonic() + ANSWER_SECONDS, path.with_suffix(TAKEN)
    while not answer_path.exists():
        who = holder(run.ledger)
        if who is None or not (path.exists() or taken_path.exists() or answer_path.exists()):
            path.unlink(missing_ok=True)
            if answer_path.exists():
                break
            raise _UnansweredError(
                f"{run.path}: the learner has ended before it answered, or its disk is full; "
                f"dcpo history {run.path} says whether it took it"
            )
        if time.monotonic() > deadline:
            # Whoever takes it renames it: what can still be removed was not taken.
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                raise _UnansweredError(
                    f"{run.path}: the learner (process {who}) has not looked for {ANSWER_SECONDS:g} s, and has "
                    f"not taken it; dcpo doctor --run {run.path} says what it does"
                )
        time.sleep(LOOK_SECONDS)
    answer: Mapping[str, Any] = json.loads(answer_path.read_text())
    answer_path.unlink(missing_ok=True)
    if not answer["taken"]:
        raise ConfigError(answer["says"])
    return answer


def _require_learner(run: RunFolder) -> None:
    if not run.ledger.is_dir():
        raise ConfigError(f"{run.path}: no run; name the folder of one that has been started")
    if holder(run.ledger) is None or not (run.path / REQUESTS).is_dir():
        raise ConfigError(
            f"{run.path}: no learner is at work on it, and nothing has changed; settings of a stopped run are given at "
            "its next start"
        )


def _set(options: argparse.Namespace) -> None:
    settings = dict(_pair(text) for text in options.settings)
    for name in settings:
        require_reloadable(name)
    print(ask(RunFolder(options.run), "set", settings=settings, at_step=options.at_step)["says"])


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and value):
        raise ConfigError(f"{text}: expected NAME=VALUE, such as training.learning_rate=5e-7")
    return name, value


def _drain(options: argparse.Namespace) -> None:
    run = RunFolder(options.run)
    answer = ask(run, "drain", actor=options.actor, by=_asker())
    told = ""
    while answer["waits"]:
        if (now := _told(answer["waits"])) != told:
            print(told := now, flush=True)
        time.sleep(1.0)
        if holder(run.ledger) is None:
            break
        try:
            answer = {**answer, **ask(run, "waits", actor=options.actor)}
        except (ConfigError, _UnansweredError):
            if holder(run.ledger) is not None:
                raise
            # It has ended meanwhile, which is what is waited for.
            break
    if options.actor is None:
        _until_stopped(run, answer["incarnation"])
    elif answer["lost"]:
        raise _LostError(f"{options.actor} was lost before it had answered all: what it held has gone out again")
    else:
        print(f"{options.actor} has answered all that it held, and has left")


def _told(waits: Mapping[str, int]) -> str:
    held = {name: number for name, number in waits.items() if number}
    leases = ", ".join(f"{name} ({number})" for name, number in held.items())
    number = sum(held.values())
    if held:
        return f"waiting for {number} {'lease' if number == 1 else 'leases'}: {leases}"
    return "an actor leaves" if len(waits) == 1 else f"{len(waits)} actors leave"


def _asker() -> str:
    """Who runs the command, for logs of others."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # In a container, whose user has no name.
        user = f"user {os.getuid()}"
    return f"{user} on {socket.gethostname()}"


def _stop(options: argparse.Namespace) -> None:
    run = RunFolder(options.run)
    answer = ask(run, "stop", keep_actors=options.keep_actors)
    unsaved = answer["unsaved"]
    what = (
        f"the trainer ends its batch and writes a checkpoint: {unsaved} steps have none" if unsaved else "all is saved"
    )
    print(f"taken at step {answer['step']}; {what}", flush=True)
    _until_stopped(run, answer["incarnation"])


def _until_stopped(run: RunFolder, incarnation: int) -> None:
    """The learner bounds its own end (checkpoint.stop_seconds); who is tired of it may leave off.

    Args:
        incarnation: of the learner that has taken it: what its ledger says of earlier ends is not about this one.
    """
    told_at = time.monotonic()
    while (who := holder(run.ledger)) is not None:
        if time.monotonic() - told_at >= TELL_SECONDS:
            told_at = time.monotonic()
            print(f"waiting for the learner's end (process {who})", flush=True)
        time.sleep(LOOK_SECONDS)
    with open_copy(run.ledger) as reader:
        ends = [event for event in events(reader) if (event.kind, event.incarnation) == ("stopped", incarnation)]
    if not ends:
        print("the learner has ended, since the run is finished or for a reason that its log says")
        return
    unsaved = ends[-1].content["unsaved"]
    left = f"; the last {unsaved} steps have no checkpoint and are trained again" if unsaved else ""
    print(f"stopped after step {ends[-1].step}{left}; the same command goes on from here")


if __name__ == "__main__":
    main()
