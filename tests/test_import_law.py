"""The import arrows point one way, and each heavy package has one owner."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for part in ("dcpo_async", "actor", "learner") for path in (ROOT / part).rglob("*.py"))
OWNERS = {
    "zmq": ("dcpo_async/transport/zmq_channel.py",),
    "msgpack": ("dcpo_async/protocol/codec.py",),
    "vllm": ("actor/engine/vllm.py",),
    "deepspeed": ("learner/trainer/trainer.py",),
    "sympy": ("dcpo_async/grading/",),
    "math_verify": ("dcpo_async/grading/",),
    "pebble": ("dcpo_async/grading/",),
}


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, inside functions too."""
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
        if any(module.split(".")[0] == package for module in imported_modules(path))
    ]


def test_the_sources_are_found() -> None:
    assert len(SOURCES) > 50


def test_the_shared_library_imports_neither_service() -> None:
    assert not [file for file in importers("actor") + importers("learner") if file.startswith("dcpo_async/")]


def test_the_services_never_import_each_other() -> None:
    assert not [file for file in importers("actor") if file.startswith("learner/")]
    assert not [file for file in importers("learner") if file.startswith("actor/")]


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
    arrows = {name: {m for m in imported_modules(path) if m in modules} - {name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for target in sorted(arrows[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(modules):
        visit(name, ())
