"""`dcpo`: everything that is not a service."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dcpo_async import __version__
from dcpo_async.errors import ConfigError, DcpoError

Command = Callable[[argparse.Namespace, list[str]], int]

EXIT_OF_DOCTOR = "Exits 0 where nothing is wrong, 1 where something is."


LIFE = (
    ("stop", "stop a run: a checkpoint is written, and its actors end unless they are kept"),
    ("drain", "let the actors of a run, or one of them, finish what they hold and leave"),
    ("set", "change settings of a run while it goes on"),
    ("history", "what has happened to a run: starts, settings, stops, evaluations"),
    ("backup", "copy all that a run needs to go on, while it goes on, and check the copy"),
    ("restore", "make a run folder of a backup"),
    ("fork", "make a run of its own that goes on from a checkpoint of another"),
)
"""Commands about the life of a run, which the learner's side has."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input, 1 on a failure."""
    options, rest = _parser().parse_known_args(argv)
    command: Command = options.command
    try:
        raise SystemExit(command(options, rest))
    except DcpoError as error:
        print(f"dcpo: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dcpo", description="Asynchronous DCPO training: demo and tools.")
    parser.add_argument("--version", action="version", version=f"dcpo-async {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train a tiny model from nothing and see it get better")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all it makes (default runs/demo)")
    demo.add_argument("--control", action="store_true", help="also run with every advantage set to zero")
    demo.add_argument("--engine", choices=("vllm", "scripted"), default="vllm")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--warm-up-steps", type=int, help="steps of the supervised warm-up (default 250; chains 800)")
    demo.add_argument("--task", choices=("largest", "chains"), default="largest", help="what is trained on")
    demo.add_argument("--sizes", nargs="+", default=[], metavar="NAME=VALUE", help="of chains: states, operations, …")
    demo.set_defaults(command=_demo)

    evaluate = commands.add_parser("eval", help="accuracy of models or of a run on problem sets", add_help=False)
    evaluate.set_defaults(command=_become("actor.evaluation"))

    data = commands.add_parser("data", help="look at problem sets").add_subparsers(required=True, metavar="COMMAND")
    check = data.add_parser(
        "check",
        help="find the problems of evaluation sets in a training set; exits 1 where there are any",
        epilog="A set is a preset's name, NAME=FILE for a local copy of one, a file, or the id of a hub data set.",
    )
    check.add_argument("train")
    check.add_argument("evaluation", nargs="+")
    form = check.add_mutually_exclusive_group()
    form.add_argument("--list", action="store_true", help="also print every pair of problems")
    form.add_argument("--json", action="store_true", help="print counts and pairs as JSON instead")
    check.set_defaults(command=_data_check)

    keygen = commands.add_parser(
        "keygen",
        help="make the keys for learner and actors on several machines",
        description="Without names: the learner's keys. With names: keys for each of them, admitted at once.",
    )
    keygen.add_argument("folder", type=Path, help="of the learner's keys")
    keygen.add_argument("--actor", nargs="+", default=[], metavar="NAME", help="a machine that runs dcpo-actor")
    keygen.add_argument("--evaluator", nargs="+", default=[], metavar="NAME", help="one that runs dcpo eval --learner")
    keygen.add_argument("--rank", nargs="+", default=[], metavar="NAME", help="a further machine of the learner's")
    keygen.set_defaults(command=_keygen)

    revoke = commands.add_parser("revoke", help="shut out the keys of peers, also while a learner runs")
    revoke.add_argument("folder", type=Path, help="of the learner's keys")
    revoke.add_argument("names", nargs="+", metavar="NAME")
    revoke.set_defaults(command=_revoke)

    status = commands.add_parser(
        "status",
        help="what a run is doing",
        epilog="Exits 0: healthy or finished; 1: it waits or is degraded; 3: no learner is at work.",
    )
    status.add_argument("run", metavar="RUN", help="run folder, or HOST:PORT where its learner listens (--http)")
    status.add_argument("--watch", action="store_true", help="show it anew every second until the run is over")
    status.add_argument("--json", action="store_true", help="as the learner wrote it, and its health")
    status.set_defaults(command=_status)

    serve = commands.add_parser(
        "serve", help="a page to look at runs, metrics for Prometheus and health over HTTP", add_help=False
    )
    serve.set_defaults(command=_become("learner.page"))

    timeline = commands.add_parser("timeline", help="what took how long in all processes, as a trace for Perfetto")
    timeline.add_argument("run", type=Path, help="run folder; the trace goes to standard output")
    timeline.set_defaults(command=_timeline)

    show = commands.add_parser("show", help="read what a run's model writes, and what it got for it", add_help=False)
    show.set_defaults(command=_become("learner.reports.show"))

    release = commands.add_parser(
        "release", help="list quarantined prompts, or let them be leased again", add_help=False
    )
    release.set_defaults(command=_become("learner.reports.release"))

    for name, help_text in LIFE:
        life = commands.add_parser(name, help=help_text, add_help=False)
        asks = name in ("set", "drain", "stop")
        life.set_defaults(command=_become("learner.life.asking", name) if asks else _become(f"learner.life.{name}"))

    stats = commands.add_parser("stats", help="statistics of every prompt of a run, as tables and plot", add_help=False)
    stats.set_defaults(command=_become("learner.reports.stats"))

    compare = commands.add_parser("compare", help="put runs side by side: one HTML file of tables and curves")
    compare.add_argument(
        "runs", nargs="+", metavar="RUN", help="[NAME=]FOLDER; runs of one NAME are the seeds of a configuration"
    )
    compare.add_argument(
        "--evaluation",
        nargs="+",
        default=[],
        type=Path,
        metavar="DIR",
        help="what dcpo eval wrote, besides RUN/evaluation",
    )
    compare.add_argument("--set", metavar="NAME", help="of held-out problems, where several were measured")
    compare.add_argument(
        "--mode", choices=("sampled", "greedy"), help="of responses (default sampled, if there are any)"
    )
    compare.add_argument("--out", type=Path, default=Path("compare.html"), help="default compare.html")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of the tables there too")
    compare.set_defaults(command=_compare)

    export = commands.add_parser("export", help="a version of a run as a model folder with a card, here or on the hub")
    export.add_argument("run", type=Path, help="run folder; a learner may work on it")
    export.add_argument("--version", type=int, metavar="N", help="weights version (default the newest that stands)")
    where = export.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=Path, metavar="FOLDER", help="is made, and never replaced")
    where.add_argument("--push", metavar="REPO", help="OWNER/NAME on the hub, by the token of HF_TOKEN")
    export.add_argument("--public", action="store_true", help="with --push: for everybody to see; else it is private")
    export.set_defaults(command=_export)

    convert = commands.add_parser("convert", help="make a Hugging Face folder of a GGUF file")
    convert.add_argument("gguf", type=Path)
    convert.add_argument("folder", type=Path)
    convert.set_defaults(command=_convert)

    settings = commands.add_parser("settings", help="print the reference of every setting, as Markdown")
    settings.set_defaults(command=_settings)

    doctor = commands.add_parser(
        "doctor",
        help="what is wrong here, on the way to a learner, or with a run, and what to do",
        epilog=EXIT_OF_DOCTOR,
    )
    doctor.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", help="of a run that is to start here")
    doctor.add_argument("--learner", metavar="ADDRESS", help="that actors of this machine are to reach")
    doctor.add_argument("--keys", type=Path, help="the learner's folder of keys, or the file of an actor")
    doctor.add_argument("--gpus", metavar="GPUS", help="that a service is to take here, such as 0-3")
    doctor.add_argument(
        "--run", metavar="RUN", help="look at a run instead, its folder or HOST:PORT (--http): why does nothing happen?"
    )
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")
    doctor.set_defaults(command=_doctor)
    return parser


def _demo(options: argparse.Namespace, rest: list[str]) -> int:
    # Imported here since it brings torch and transformers, which the other commands do without.
    from dcpo_async.demo.run import DemoOptions, run_demo

    out, engine, with_control = options.out, options.engine, options.control
    task, sizes = options.task, tuple(options.sizes)
    run_demo(DemoOptions(out, engine, with_control, options.seed, options.warm_up_steps, tuple(rest), task, sizes))
    return 0


def _become(module: str, *words: str) -> Command:
    """A command that another module has, in place of this process: this package imports neither service."""

    def command(options: argparse.Namespace, rest: list[str]) -> int:
        os.execv(sys.executable, [sys.executable, "-m", module, *words, *rest])

    return command


def _data_check(options: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console

    from dcpo_async.commands.data_check import as_json, compare, print_pairs, print_table

    _refuse(rest)
    comparisons = compare(options.train, options.evaluation)
    if options.json:
        print(as_json(comparisons))
    else:
        print_table(comparisons, Console())
    if options.list:
        print_pairs(comparisons, Console(soft_wrap=True))
    return 1 if any(one.overlaps for one in comparisons) else 0


def _keygen(options: argparse.Namespace, rest: list[str]) -> int:
    from dcpo_async.transport.admission import ROLES
    from dcpo_async.transport.key_files import write_peer_keys, write_server_keys
    from dcpo_async.transport.zmq_channel import new_pair

    _refuse(rest)
    folder, names = options.folder, [*options.actor, *options.evaluator, *options.rank]
    if not names:
        write_server_keys(folder, new_pair())
        print(f"keys of the learner in {folder}: dcpo-learner --keys {folder}")
        print(f"keys for each actor: dcpo keygen {folder} --actor NAME")
    for role in ROLES:
        for name in getattr(options, role):
            file = write_peer_keys(folder, name, role, new_pair())
            print(f"{role} {name} is admitted; move {file} to its machine, and pass it there with --keys")
    return 0


def _revoke(options: argparse.Namespace, rest: list[str]) -> int:
    from dcpo_async.transport.key_files import revoke

    _refuse(rest)
    for name in options.names:
        revoke(options.folder, name)
        print(f"{name} is not admitted any more; a learner that runs closes its connections within a second")
    return 0


def _status(options: argparse.Namespace, rest: list[str]) -> int:
    from dcpo_async.commands.status import show_status

    _refuse(rest)
    return show_status(options.run, watch=options.watch, as_json=options.json)


def _timeline(options: argparse.Namespace, rest: list[str]) -> int:
    from dcpo_async.metrics.timeline import read_spans, trace
    from dcpo_async.run_folder import RunFolder

    _refuse(rest)
    folder = RunFolder(options.run).timing
    if not folder.is_dir():
        raise ConfigError(f"{options.run}: no spans in it; name the folder of a run that has been started")
    json.dump(trace(read_spans(folder)), sys.stdout)
    return 0


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    from dcpo_async.comparison.report import compare

    _refuse(rest)
    comparison = compare(
        options.runs,
        options.out,
        evaluations=options.evaluation,
        set_name=options.set,
        mode=options.mode,
        json_path=options.json,
    )
    for note in comparison.notes:
        print(f"note: {note}")
    num_runs = sum(len(row.runs) for row in comparison.rows)
    print(f"{options.out}: configurations {len(comparison.rows)}, runs {num_runs}")
    return 0


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    # Imported here since the hub's client takes a second.
    from dcpo_async.commands.export import export_to, push_to

    _refuse(rest)
    if options.push is None and options.public:
        raise ConfigError("--public goes with --push: a folder is as private as where it stands")
    if options.push is not None:
        manifest, place = push_to(options.run, options.version, options.push, is_public=options.public)
    else:
        manifest, place = export_to(options.run, options.version, options.to), options.to
    print(f"{place}: weights version {manifest.weights_version} of {manifest.run_id}, step {manifest.step}")
    return 0


def _convert(options: argparse.Namespace, rest: list[str]) -> int:
    from dcpo_async.commands.convert import convert_gguf

    _refuse(rest)
    convert_gguf(options.gguf, options.folder)
    print(f"model folder: {options.folder}")
    return 0


def _settings(options: argparse.Namespace, rest: list[str]) -> int:
    from dcpo_async.commands.settings import settings_reference
    from dcpo_async.config import RunConfig

    _refuse(rest)
    print(settings_reference(RunConfig), end="")
    return 0


def _doctor(options: argparse.Namespace, rest: list[str]) -> int:
    from dcpo_async.doctor.command import described, diagnose, tell
    from dcpo_async.doctor.run import described_run

    _refuse(rest)
    if not options.json:
        print(described() if options.run is None else described_run(options.run))
    where = {"learner": options.learner, "run_folder": options.run, "keys": options.keys}
    return tell(list(diagnose(configs=options.configs, gpu_numbers=options.gpus, **where)), as_json=options.json)


def _refuse(rest: Sequence[str]) -> None:
    if rest:
        raise ConfigError(f"unknown words: {' '.join(rest)}; dcpo --help lists the commands")


if __name__ == "__main__":
    main()
