"""`dcpo show` as people and machines read it."""

import json
from pathlib import Path

import pytest

from learner.reports.inspection import ShownResponse
from learner.reports.show import main, readable, same_answers
from tests.learner.small_run import answer, make_config, make_intake, publish, train


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two steps over two prompts: each is visited twice, first with one right response and then with two."""
    config = make_config(tmp_path, groups_per_step=1, max_lag=1)
    intake = make_intake(config, num_prompts=2)
    train(intake, [(1.0, 0.0)], [(1.0, 0.0)], [(1.0, 1.0)], [(1.0, 1.0)])
    intake.ledger.close()
    (tmp_path / "config.json").write_text(config.model_dump_json())
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    main([str(word) for word in words])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a refused command leaves on stderr."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert (ended.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    return captured.err


def test_a_group_says_what_was_asked_answered_and_given(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, run, "--step", 2).split())
    number = json.loads(shown(capsys, run, "--step", 2, "--json"))["reference"]
    assert f"step 2 · prompt prompt-{number} · visit 1 · position 1 ──" in text
    assert f"── problem {number} reference {number} · 1 of 2 right · lag 0 · prompt so far: visits 1," in text
    assert (
        "#2 wrong · different · no answer · reward 0 · advantage -0.7071 · length 2, stopped · weights 2 resp" in text
    )
    assert "response 1 #1 right · equal · no answer · reward 1 · advantage +0.7071 · length 2" in text
    whole = " ".join(shown(capsys, run, "--step", 2, "--all").split())
    assert "response 0 #2 wrong" in whole, "in their order"


def test_equal_answers_are_one_wrong_ones_first_and_what_has_no_answer_stands_for_itself() -> None:
    answers = [("7", True), ("5", False), ("7", True), (None, False), ("6", False), ("6", False), (None, False)]
    numbered = [
        (number, ShownResponse(float(is_right), 0.0, None, None, answer, is_right))
        for number, (answer, is_right) in enumerate(answers, start=1)
    ]
    assert [[number for number, _ in same] for same in same_answers(numbered)] == [[5, 6], [2], [4], [7], [1, 3]]


def test_json_is_one_object_for_each_group(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, run, "--json", "--count", 2).splitlines()
    third, fourth = map(json.loads, lines)
    assert (third["step"], third["position"], fourth["step"], fourth["position"]) == (3, 2, 4, 3)
    assert third["prompt_stats"] == {"visits": 2, "count": 4, "mean": 0.75, "std": 0.5}
    assert (third["visit"], third["attempt"], third["state"], third["lags"]) == (2, 1, "accepted", [0, 0])
    assert third["responses"][1]["segments"] == [{"weights_version": 3, "num_tokens": 2}]
    assert third["responses"][1]["text"] == "response 1"


def test_visits_are_one_line_each(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, run, "--prompt", "prompt-0", "--visits")
    head, problem, reference, names, first, second = text.splitlines()
    assert head.startswith("prompt prompt-0 ──")
    assert (problem, reference) == ("problem 0", "reference 0")
    assert " ".join(names.split()) == "visit step position weights right mean advantages length cut answers"
    assert first.split()[0] == "1"
    assert first.split()[4:7] == ["1/2", "0.5", "-0.707…0.707"]
    assert second.split()[4:6] == ["2/2", "0.75"]
    assert second.split()[-2:] == ["none", "×2"]


def test_groups_may_be_chosen_by_how_many_are_right(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, run, "--mixed", "--json").splitlines()
    assert [json.loads(line)["position"] for line in lines] == [0, 1]


def test_a_choice_that_nothing_meets_ends_well_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--wrong", "--json"])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"dcpo show: {run} has no such group yet\n")


def test_bad_input_is_refused_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file; name the folder of a run" in refused(capsys, tmp_path / "elsewhere")
    assert "prompt x: no prompt that was visited" in refused(capsys, run, "--prompt", "x")
    assert "step 9: no batch was made for it; the newest is step 4" in refused(capsys, run, "--step", 9)
    assert "--visits shows one prompt over time: name it by --prompt ID" in refused(capsys, run, "--visits")
    assert "--count 0: must be at least 1" in refused(capsys, run, "--count", 0)
    assert "--max-chars -1: must be at least 1, or 0" in refused(capsys, run, "--max-chars", -1)


def test_settings_that_this_release_does_not_know_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.json").write_text('{"nonsense": 1}')
    said = refused(capsys, run)
    assert f"{run}/config.json: nonsense: Extra inputs are not permitted; show the run with the release" in said
    (run / "config.json").unlink()
    assert "No such file or directory; a learner writes it as it starts" in refused(capsys, run)


# ---- texts


def test_what_would_steer_a_terminal_is_escaped() -> None:
    assert readable("a\x1b[31mb\r\x00\u202ec\n\td é ∑") == "a\\x1b[31mb\\r\\x00\\u202ec\n\td é ∑"


def test_a_long_text_loses_its_middle() -> None:
    assert readable("abcdefghi", 4) == "ab[… 5 characters …]hi"
    assert readable("abcdefghi", 9) == readable("abcdefghi", 0) == "abcdefghi"


def test_what_looks_like_markup_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=0)
    intake = make_intake(config)
    version = publish(intake, 0)
    lease = intake.grant(b"a", now=0.0)
    assert lease is not None
    intake.accept(b"a", answer(lease, version, text="so [bold]x[/bold] :smile: is \\boxed{[0, 1]}"))
    intake.ledger.close()
    (tmp_path / "config.json").write_text(config.model_dump_json())
    text = shown(capsys, tmp_path)
    assert "so [bold]x[/bold] :smile: is \\boxed{[0, 1]}" in text
    assert "answer [0, 1]" in text
