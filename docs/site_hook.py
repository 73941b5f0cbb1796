"""The list of decisions on the site, and a page for every file of the source that a page of docs/ links to.

Pages link to files outside of docs/ as they stand in a repository (`../actor/service.py`). A site has no such files, so
that each gets a page of its own with its text.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".json": "json"}
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
_TITLE = re.compile(r"# (\d+\. .*)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the list of decisions, and a page for each file that is linked to."""
    files.append(File.generated(config, "decisions/index.md", content=_decisions()))
    linked = {path for file in files.documentation_pages() for path in _sources(file.src_uri, file.content_string)}
    for path in sorted(linked):
        files.append(File.generated(config, f"source/{path}.md", content=_source_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to the pages of those files."""
    here = page.file.src_uri
    origin = here.removeprefix("source/").removesuffix(".md") if here.startswith("source/") else f"docs/{here}"

    def led(link: re.Match[str]) -> str:
        path = _path(origin, link[1])
        if path is None:
            return link[1]
        target = path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return _LINK.sub(led, markdown)


def _sources(page: str, text: str) -> set[str]:
    paths = (_path(f"docs/{page}", link) for link in _LINK.findall(text))
    return {path for path in paths if path and not path.startswith("docs/")}


def _path(origin: str, link: str) -> str | None:
    """The path in the repository of what a file of it links to; None where that is elsewhere, or not there."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    return path if "://" not in link and (ROOT / path).is_file() else None


def _source_page(path: str) -> str:
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    # A fence that is longer than any in the file.
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", text))])
    return f"# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}{fence}\n"


def _decisions() -> str:
    lines = []
    for file in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        title = _TITLE.match(file.read_text())
        assert title, f"{file} has no title with a number"
        lines.append(f"- [{title[1]}]({file.name})".replace(". ", "\\. ", 1))
    return "# Decisions\n\nWhat was decided, why, and what else was thought of.\n\n" + "\n".join(lines) + "\n"
