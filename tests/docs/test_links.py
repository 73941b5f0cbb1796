"""Links and anchors of the pages lead somewhere, and the pages read as they do in a repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n+)+")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _INDENTED.sub("", _FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Of its headings, as a repository's pages have them: small letters, hyphens for spaces, no other signs."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose(page))}


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere; those to other hosts are not tried."""
    found = []
    for link in _LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# There\n\n## What is `kept`, and where\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md) [b](there.md#what-is-kept-and-where) [c](there.md#lost) [d](gone.md) [e](#here)\n")
    assert broken(page) == ["there.md#lost", "gone.md", "#here"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_and_tables_begin_after_an_empty_line(page: Path) -> None:
    """Else the site has them as a part of the paragraph above."""
    starts = ("- ", "1. ", "|", "#")
    blocks = [block.strip("\n").splitlines() for block in prose(page).split("\n\n") if block.strip()]
    run_on = [block for block in blocks if any(line.startswith(starts) for line in block[1:])]
    assert not [block[0] for block in run_on if not block[0].startswith(starts)]


def test_menus_of_the_site_name_every_page() -> None:
    menus = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = re.findall(r"- ([\w/-]+\.md)$", menus, re.MULTILINE)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    # The hook makes the list of decisions.
    assert set(named) == pages | {"decisions/index.md"}
    assert len(named) == len(set(named))
