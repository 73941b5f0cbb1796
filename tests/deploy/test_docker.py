"""The image of the GPU installation: its file is linted, its versions are those of pyproject.toml, no secrets go in."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deploy.tools import DEPLOY, lint

ROOT = DEPLOY.parent
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"


def project() -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_hadolint_finds_nothing() -> None:
    lint("hadolint", DOCKERFILE)


def test_every_package_is_pinned_and_as_the_project_asks_for() -> None:
    lines = (DEPLOY / "docker" / "requirements-gpu.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = project()["optional-dependencies"]
    for words in [*project()["dependencies"], *extras["actor"], *extras["learner"]]:
        asked = Requirement(words)
        assert asked.specifier.contains(pins[asked.name]), words


def test_services_run_as_a_user_without_rights_and_hear_signals() -> None:
    text = DOCKERFILE.read_text()
    assert re.findall(r"^USER (.*)", text, re.MULTILINE)[-1] == "1000:1000"
    assert 'ENTRYPOINT ["tini", "--"]' in text
    assert not re.search(r"SECRET|TOKEN|PASSWORD", text, re.IGNORECASE)


@pytest.mark.parametrize(
    ("path", "is_let_in"),
    [
        ("pyproject.toml", True),
        ("learner/launcher.py", True),
        ("configs/demo.toml", True),
        ("deploy/docker/requirements-gpu.txt", True),
        ("keys/server.secret", False),
        ("configs/node-1.keys", False),
        (".git/config", False),
        ("runs/demo/run/config.json", False),
        ("tests/forged.py", False),
    ],
)
def test_what_goes_into_the_image_is_what_is_installed(path: str, is_let_in: bool) -> None:
    assert lets_in(path) == is_let_in


def lets_in(path: str) -> bool:
    """Whether .dockerignore lets a file in: the last of its lines that matches decides."""
    found = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").replace("**/", "*")
        if any(parent.match(pattern) for parent in (Path(path), *Path(path).parents)) and (
            "/" in pattern or pattern.startswith("*") or Path(path).parts[0] == pattern
        ):
            found = line.startswith("!")
    return found


def test_all_packages_that_the_project_installs_go_in() -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert all(lets_in(f"{name.rstrip('*')}/__init__.py") for name in include)
    assert all(lets_in(name) for name in ("LICENSE", "README.md"))
