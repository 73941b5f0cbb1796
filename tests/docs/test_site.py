"""The site of docs/, built strictly as `make docs` builds it, loads nothing from elsewhere."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MKDOCS = ROOT / ".venv" / "docs" / "bin" / "mkdocs"

pytestmark = [
    pytest.mark.skipif(not MKDOCS.exists(), reason="`make docs-tools` has installed nothing here"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [MKDOCS, "build", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_another_host(site: Path) -> None:
    loaded = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\s\"'>]+)")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: found for page in pages if (found := loaded.findall(page.read_text()))} == {}


def test_style_sheets_load_nothing_from_another_host(site: Path) -> None:
    sheets = list(site.rglob("*.css"))
    assert sheets
    assert not [sheet.name for sheet in sheets if re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text())]


def test_the_public_surface_has_its_page_from_the_code(site: Path) -> None:
    page = (site / "api.html").read_text()
    for name in ("api.read_run", "api.grade", "algorithm.smooth_advantages", "algorithm.clip_bounds"):
        assert f'id="dcpo_async.{name}"' in page
    assert "2509.02333" in page


def test_files_of_the_source_that_a_page_links_to_are_in_the_site(site: Path) -> None:
    page = (site / "code.html").read_text()
    assert 'href="source/actor/service.py.html"' in page
    assert "class" in (site / "source" / "actor" / "service.py.html").read_text()


def test_the_list_of_decisions_has_all_of_them(site: Path) -> None:
    listed = re.findall(r'href="(\d{4}-[\w-]+)\.html"', (site / "decisions" / "index.html").read_text())
    assert set(listed) == {file.stem for file in (ROOT / "docs" / "decisions").glob("[0-9]*.md")}
