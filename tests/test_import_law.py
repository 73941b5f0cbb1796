"""The import arrows point one way, and each heavy package has one owner."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for part in ("dcpo_async", "actor", "learner") for path in (ROOT / part).rglob("*.py"))
OWNERS = {
    "zmq": (
        "dcpo_async/transport/zmq_channel.py",
        "dcpo_async/transport/connections.py",
        "dcpo_async/transport/gate.py",
    ),
    # The ledger's oldest format was the protocol's: its decoder stays when the protocol's codec goes.
    "msgpack": ("dcpo_async/protocol/codec.py", "learner/ledger/group_format.py"),
    # The second is its logger; the others run inside it, and take a step in the types of its scheduler.
    "vllm": ("actor/engine/vllm.py", "actor/engine/load_reader.py", "actor/engine/workers/"),
    # The second has it partition what is read.
    "deepspeed": ("learner/trainer/engine.py", "learner/weights/partitioning.py"),
    "peft": ("learner/weights/adapter.py",),
    "sqlite3": ("learner/ledger/",),
    "sympy": ("dcpo_async/grading/math/equivalence.py",),
    "math_verify": ("dcpo_async/grading/math/equivalence.py",),
    "reasoning_gym": ("dcpo_async/gym/",),
    "prometheus_client": ("dcpo_async/monitoring/",),
    "uvicorn": ("dcpo_async/monitoring/",),
    "starlette": ("dcpo_async/monitoring/", "learner/page/"),
    "pebble": ("dcpo_async/grading/workers.py",),
    "tensorboard": ("dcpo_async/metrics/tensorboard.py",),
    "wandb": ("dcpo_async/tracking/wandb_run.py",),
    "mlflow": ("dcpo_async/tracking/mlflow_run.py",),
    "trackio": ("dcpo_async/tracking/trackio_run.py",),
}

# From the ground up: a part imports from the floors below its own, never from beside or above.
FLOORS = (
    "errors records columns durable run_folder",
    "limits",
    "config algorithm weights grading/extraction grading/math/syntax devices model_folder processes metrics",
    "adapters grading/math/arithmetic",
    "grading/math/forms",
    "grading/math",
    "grading protocol supervision",
    "transport prompts evaluation grading/rewards",
    "comparison demo weight_serving gym monitoring doctor tracking",
    "api commands",
)
# What each part of a service may import of that service; all may import the shared library, but for `scheduling`.
SERVICES = {
    "actor/engine": "",
    "actor/engine/workers": "engine",
    "actor/weights": "",
    "actor/learner_link": "",
    "actor/weights_options": "",
    "actor/capacity": "engine",
    "actor/settings_change": "",
    "actor/weights_follower": "engine weights learner_link",
    "actor/progress": "engine weights_follower",
    "actor/tasks": "",
    "actor/service": "capacity engine learner_link progress settings_change tasks weights_follower",
    "actor/engine_process": "engine learner_link service weights weights_follower weights_options",
    "actor/evaluation": "engine weights learner_link weights_follower",
    "actor/launcher": "engine weights_options",
    "learner/scheduling": "",
    "learner/ledger": "",
    "learner/weights": "",
    "learner/problems": "",
    "learner/ranks": "",
    "learner/nodes": "initial_model ranks",
    "learner/visits": "ledger scheduling",
    "learner/coordinator": "checkpoints evaluations ledger scheduling visits",
    "learner/evaluations": "ledger scheduling",
    "learner/ledger/watching": "ledger",
    "learner/reports": "ledger visits",
    "learner/page": "ledger ledger/watching life reports",
    "learner/checkpoints": "weights",
    "learner/policy": "",
    "learner/timing": "",
    "learner/trainer": "checkpoints nodes policy ranks timing weights",
    "learner/publisher": "trainer weights",
    "learner/sizing": "checkpoints policy ranks weights",
    "learner/life": "checkpoints coordinator ledger scheduling",
    "learner/starts": "ledger",
    "learner/initial_model": "",
    "learner/run_prompts": "problems",
    "learner/run_setup": "coordinator evaluations initial_model ledger life problems run_prompts sizing starts visits",
    "learner/parts": "checkpoints coordinator nodes ranks",
    "learner/trackers": "",
    "learner/launcher": "coordinator evaluations life nodes parts problems ranks run_setup sizing trackers",
}
# Decisions: they know the nouns and nothing else.
PURE = {"learner/scheduling": {"dcpo_async/records"}}


@cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """Every module that a file names in an import, inside functions too."""
    return tuple(_imported_modules(path))


def _imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def importers(package: str) -> list[str]:
    """Files that import a package or a part of it."""
    return [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(f"{module}.".startswith(f"{package}.") for module in imported_modules(path))
    ]


def part_of(path: Path) -> str:
    """The folder that a file lies in, or the file itself where that is the package's own: actor/engine, actor/service.

    Folders within a folder are parts of their own.
    """
    relative = path.relative_to(ROOT).with_suffix("")
    return str(relative if len(relative.parts) == 2 else relative.parent)


def file_of(module: str) -> Path | None:
    """The file of a module of ours; None for other packages and for names within a module."""
    path = ROOT.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def arrows() -> dict[str, set[str]]:
    """What each part imports of the others."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        targets = {part_of(file) for file in map(file_of, imported_modules(path)) if file is not None}
        found.setdefault(part_of(path), set()).update(targets - {part_of(path)})
    # A package's own __init__ is where its folder's name leads.
    return {part: {t.removesuffix("/__init__") for t in targets} for part, targets in found.items()}


def test_the_sources_are_found() -> None:
    assert len(SOURCES) > 50


def test_the_shared_library_imports_neither_service_and_the_services_never_each_other() -> None:
    services = {part: {t.split("/")[0] for t in targets} for part, targets in arrows().items()}
    for part, packages in services.items():
        home = part.split("/")[0]
        assert packages <= {home, "dcpo_async"}, f"{part} imports {packages}"


def test_the_shared_library_is_built_in_floors() -> None:
    floor_of = {f"dcpo_async/{name}": floor for floor, names in enumerate(FLOORS) for name in names.split()}
    for part, targets in arrows().items():
        if not part.startswith("dcpo_async/") or part.endswith("__init__"):
            continue
        assert part in floor_of, f"{part} is new: give it a floor"
        # The package's own __init__ has the version, and imports nothing.
        above = {target for target in targets - {"dcpo_async"} if floor_of[target] >= floor_of[part]}
        assert not above, f"{part} imports {above}"


def test_each_part_of_a_service_imports_what_the_table_allows() -> None:
    for part, targets in arrows().items():
        service = part.split("/")[0]
        if service == "dcpo_async" or part.endswith("__init__"):
            continue
        assert part in SERVICES, f"{part} is new: say what it may import"
        allowed = {f"{service}/{name}" for name in SERVICES[part].split()}
        of_the_service = {target for target in targets if target.startswith(f"{service}/")}
        assert of_the_service <= allowed, f"{part} imports {of_the_service - allowed}"
        assert targets - of_the_service <= PURE.get(part, targets), f"{part} is pure, it imports {targets}"


def test_the_tables_name_nothing_that_is_gone() -> None:
    parts = set(arrows())
    assert {f"dcpo_async/{name}" for names in FLOORS for name in names.split()} <= parts
    assert SERVICES.keys() <= parts


@pytest.mark.parametrize("package", OWNERS)
def test_each_heavy_package_is_imported_by_its_owner_alone(package: str) -> None:
    found = importers(package)
    # sympy comes in by way of math_verify, and need not be named at all.
    assert found or package == "sympy"
    assert not [file for file in found if not file.startswith(OWNERS[package])]


def test_no_module_imports_itself_by_a_detour() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
    }
    targets = {name: {m for m in imported_modules(path) if m in modules} - {name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for target in sorted(targets[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(modules):
        visit(name, ())
