"""The whole report of three tiny runs, from the command's words to its files."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dcpo_async.commands.cli import main
from dcpo_async.comparison.figures import Measured
from dcpo_async.comparison.report import percent
from tests.comparison.made_runs import line, measured, write_evaluation, write_run

HOSTILE = """_<b>"D'CPO"</b> & $x^$ {{ 7 * 7 }}"""


IN_CELLS = ("span", "svg", "line")


class Reader(HTMLParser):
    """Text and elements of a page, and the cells of its tables by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.images = 0
        self._is_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._is_cell = tag in ("td", "th") or (self._is_cell and tag in IN_CELLS)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.images += dict(attrs).get("role") == "img"

    def handle_endtag(self, tag: str) -> None:
        self._is_cell = self._is_cell and tag in IN_CELLS

    def handle_data(self, data: str) -> None:
        if self._is_cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two seeds of DCPO and a run of GRPO, measured at steps 0 and 2."""
    folder, entries = tmp_path_factory.mktemp("runs"), {}
    for number, (name, final) in enumerate((("dcpo-0", 0.5), ("dcpo-1", 0.75), ("grpo-0", 0.5))):
        lines = [line(step, rur=0.5 + 0.125 * number) for step in (1, 2)]
        algorithm = {"advantage": "group" if name == "grpo-0" else "smooth"}
        write_run(folder / name, lines, seed=number, algorithm=algorithm)
        entries |= {f"{name}-{step}": measured(f"run-{name}", step, mean) for step, mean in ((0, 0.25), (2, final))}
    write_evaluation(folder / "eval", entries)
    runs = [f"{HOSTILE}={folder}/dcpo-0", f"{HOSTILE}={folder}/dcpo-1", f"GRPO={folder}/grpo-0"]
    return ["compare", *runs, "--evaluation", str(folder / "eval")]


@pytest.fixture(scope="module")
def report(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with report.html and numbers.json."""
    out = tmp_path_factory.mktemp("out")
    assert run_command([*words, "--out", str(out / "report.html"), "--json", str(out / "numbers.json")]) == 0
    return out


def run_command(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ending:
        main(words)
    assert isinstance(ending.value.code, int)
    return ending.value.code


def test_the_report_begins_with_rewards_and_differences_and_has_the_numbers_and_figures(report: Path) -> None:
    page = Reader((report / "report.html").read_text())
    assert [row for row in page.rows if row[0] in (HOSTILE, "GRPO")][:10] == [
        # Two seeds and one: means without an interval over seeds.
        [HOSTILE, "0.250", "–", "62.5 %", "–"],
        ["GRPO", "0.250", "+0.000", "50.0 [40.0, 60.0] %", "-12.5 points"],
        [HOSTILE, *["62.5 %"] * 4],
        ["GRPO", *["50.0 [40.0, 60.0] %"] * 4],
        [HOSTILE, "2", "smooth"],
        ["GRPO", "1", "group"],
        [HOSTILE, "2", "8.0", "80", "4"],
        ["GRPO", "2", "8.0", "80", "4"],
        [HOSTILE, "56.2 %", "75.0 %", "0.8000", "1.0000 %"],
        ["GRPO", "75.0 %", "75.0 %", "0.8000", "1.0000 %"],
    ]
    # The reward, accuracy by steps, tokens and time, and two panels for each of three further figures.
    assert page.images == 1 + 3 + 6


def test_charts_take_the_colours_of_the_page_and_have_no_others(report: Path) -> None:
    text = (report / "report.html").read_text()
    charts = re.findall(r'<div role="img".*?</div>', text, flags=re.DOTALL)
    assert len(charts) == 10
    for chart in charts:
        assert "var(--line-0)" in chart
        assert not re.findall(r"#[0-9a-f]{6}", chart)
        assert not re.search(r"<svg[^>]* (width|height)=", chart)
    assert "prefers-color-scheme: dark" in text


def test_the_report_stands_alone_and_names_cannot_break_it(report: Path) -> None:
    text = (report / "report.html").read_text()
    assert not Reader(text).tags & {"script", "link", "b", "iframe", "object"}
    assert not re.findall(r"https?:", text)


def test_the_same_runs_give_the_same_bytes(words: list[str], report: Path, tmp_path: Path) -> None:
    run_command([*words, "--out", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_bytes() == (report / "report.html").read_bytes()


def test_numbers_go_to_a_file_for_programs(report: Path) -> None:
    found = json.loads((report / "numbers.json").read_text())
    assert found["accuracy"] == {"set": "sums", "mode": "sampled", "step": 2, "responses": 16.0}
    assert [one["name"] for one in found["configurations"]] == [HOSTILE, "GRPO"]
    grpo = found["configurations"][1]
    assert [(run["run_id"], run["seed"]) for run in grpo["runs"]] == [("run-grpo-0", 2)]
    assert grpo["final"] == {"mean": 0.5, "low": 0.4, "high": 0.6}
    assert grpo["rur"] == {"mean": 0.75, "low": None, "high": None}


def test_notes_are_in_the_report_and_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", [line(1)])
    assert run_command(["compare", str(tmp_path / "a"), "--out", str(tmp_path / "out" / "report.html")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("note: no held-out accuracy: no evaluation of these runs was found")
    assert said[1:] == [f"{tmp_path}/out/report.html: configurations 1, runs 1"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<li>no held-out accuracy: no evaluation of these runs was found" in page
    assert Reader(page).images == 7


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "aime24"], "dcpo: --set aime24: no version of these runs was measured so"),
        (["--out", "/proc/none/x.html"], "dcpo: the report cannot be written"),
        (["--out", "caf\udce9.html"], r"dcpo: 'caf\udce9.html' is not UTF-8"),
        (["--evaluation", "caf\udce9"], r"dcpo: 'caf\udce9' is not UTF-8"),
        (["caf\udce9=runs/a"], r"dcpo: 'caf\udce9=runs/a' is not UTF-8"),
        (["--unknown"], "dcpo: unknown words: --unknown"),
    ],
)
def test_bad_words_are_answered_with_one_line(
    words: list[str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*words, *more]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_shares_are_written_in_percent() -> None:
    assert percent(Measured(0.931, 0.91, 0.95)) == "93.1 [91.0, 95.0] %"
    assert percent(Measured(0.00125), digits=2) == "0.12 %"
    assert percent(None) == "–"
