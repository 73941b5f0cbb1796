"""Counts the lines of the files that the reading path of docs/code.md names: `python -m bench.reading_path`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_LINES = 1000
_SECTION = re.compile(r"^## Reading path$(.*?)^## ", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(\.\./([\w/]+\.py)\)")


def reading_path(page: str) -> dict[str, int]:
    """Lines of each file of the path, docstrings and blank lines included, in the order in which it is read."""
    section = _SECTION.search(page)
    if section is None:
        raise ValueError("docs/code.md has no section 'Reading path'")
    return {path: len((ROOT / path).read_text().splitlines()) for path in _LINK.findall(section[1])}


def main() -> int:
    """Print the count of each file and their sum; returns 1 when the sum is over the bound."""
    counts = reading_path((ROOT / "docs" / "code.md").read_text())
    for path, count in counts.items():
        print(f"{count:5} {path}")
    total = sum(counts.values())
    print(f"{total:5} of at most {MAX_LINES}")
    return int(total > MAX_LINES)


if __name__ == "__main__":
    sys.exit(main())
