"""The house stays one that can be read: short files, small classes, folders that fit on one screen."""

import ast
import re
from pathlib import Path

import pytest

from bench.reading_path import MAX_LINES, ROOT, reading_path

PRODUCT = sorted(path for part in ("dcpo_async", "actor", "learner", "bench") for path in (ROOT / part).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE_LINES, MAX_PUBLIC_METHODS, MAX_MODULES = 400, 15, 10
IMPORT_LATE = {
    "actor/launcher.py": "a web server takes half a second, and only --http needs one",
    "actor/engine/choice.py": "vLLM takes seconds, and grading workers import this module again",
    "actor/evaluation/__main__.py": "torch takes seconds, which a look at the options must not cost",
    "learner/page/__main__.py": "a web server, and what reads ledgers, take a second, the same",
    "learner/reports/stats.py": "Arrow and matplotlib take a second, the same",
    "dcpo_async/commands/cli.py": "each command pays for its own packages alone",
    "dcpo_async/grading/grader.py": "math-verify takes seconds, and most answers never need it",
    "dcpo_async/model_folder.py": "transformers and the hub's client take seconds",
    "dcpo_async/weights/__init__.py": "torch takes seconds, which relays and weight servers do without",
    "dcpo_async/prompts/rows.py": "datasets and pyarrow take a second, and files in JSON lines need neither",
    "dcpo_async/gym/problems.py": "the package takes a second, is optional, and only its own problems need it",
    "dcpo_async/tracking/__main__.py": "each sink's package takes seconds, and is optional",
    "dcpo_async/tracking/trackio_run.py": "the package decides at its import where it stores",
    "learner/weights/adapter.py": "only runs with an adapter need peft, which `make gpu-check` does not bring",
    "learner/launcher.py": "torch takes seconds, which a refused setting must not cost",
    "bench/grading_throughput.py": "math-verify is measured, and its import is not",
}
"""Imports within functions, and what was measured to need them (docs/experiments.md, start-up)."""


def test_the_reading_path_is_within_its_bound() -> None:
    counts = reading_path((ROOT / "docs" / "code.md").read_text())
    assert len(counts) >= 5
    assert sum(counts.values()) <= MAX_LINES, counts


@pytest.mark.parametrize("path", [*PRODUCT, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def test_no_class_has_too_many_public_methods() -> None:
    crowded = {}
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
                public = [name for name in methods if not name.startswith("_")]
                if len(public) > MAX_PUBLIC_METHODS:
                    crowded[f"{path.relative_to(ROOT)}: {node.name}"] = len(public)
    assert not crowded


def test_no_folder_has_too_many_modules() -> None:
    folders = {path.parent for path in PRODUCT}
    modules = {folder: [path for path in folder.glob("*.py") if path.name != "__init__.py"] for folder in folders}
    assert not {str(folder): len(found) for folder, found in modules.items() if len(found) > MAX_MODULES}


def test_imports_within_functions_are_those_that_were_measured_to_be_needed() -> None:
    late = set()
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = [item for item in ast.walk(node) if isinstance(item, ast.Import | ast.ImportFrom)]
                late |= {str(path.relative_to(ROOT))} if inner else set()
    assert late == IMPORT_LATE.keys()


def test_every_folder_of_the_product_has_its_line_in_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = {str(path.parent.relative_to(ROOT)) for path in PRODUCT}
    named = set(re.findall(r"^\| `([\w/]+)/` \|", page, re.MULTILINE))
    assert folders <= named, folders - named
