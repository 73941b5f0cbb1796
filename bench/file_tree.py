"""Every module with the first line of its docstring, as Markdown: `python -m bench.file_tree > docs/files.md`."""

import ast
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("actor", "learner", "dcpo_async", "bench")
HEAD = """# Files

Written by `python -m bench.file_tree > docs/files.md` from the first line of each module; edit those, not this page.
"""


def file_tree() -> str:
    """The page: a table for each folder, its own line above it."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    paths = sorted(found, key=lambda path: (path.parent, path.name))
    blocks = [HEAD]
    for folder, files in groupby(paths, key=lambda path: path.parent):
        lines = {path.stem: _first_line(path) for path in files}
        about = lines.pop("__init__", "")
        rows = "\n".join(f"| `{name}` | {line} |" for name, line in lines.items())
        blocks.append(f"## {folder.relative_to(ROOT)}/\n\n{about}\n\n| module | what it is |\n|---|---|\n{rows}\n")
    return "\n".join(blocks)


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path} does not say what it is"
    return docstring.partition("\n")[0].replace("|", r"\|")


if __name__ == "__main__":
    print(file_tree(), end="")
