"""The page of files is written from the files."""

from bench.file_tree import ROOT, file_tree


def test_the_page_in_docs_is_up_to_date() -> None:
    assert (ROOT / "docs" / "files.md").read_text() == file_tree(), "python -m bench.file_tree > docs/files.md"
