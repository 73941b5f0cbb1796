"""Training problems that stand in an evaluation set."""

import json
from pathlib import Path

import pytest

from dcpo_async.commands.cli import main
from dcpo_async.prompts import Likeness, Overlap, count_contaminated, load, overlaps, problem_source

TRAIN = [
    "Find the sum of all integer bases $b>9$ for which $17_b$ is a divisor of $97_b$.",
    "Flora the frog starts at 0 on the number line and makes a sequence of jumps to the right.",
    "What is $2+3$?",
]
AMC23 = (
    "Janet rolls a standard $6$-sided die $4$ times and keeps a running total of the numbers she rolls. What is the "
    "probability that at some point, her running total will equal $3$? "
)
AS_M_PLUS_N = r"The answer can be written as $\frac{m}{n}$, where $m$ and $n$ are relatively prime. What is $m+n$?"
AS_K_PLUS_M = r"Express your answer as \(\frac{k}{m}\) in simplest form. Please give the value of k + m."


def test_the_same_string_is_exact() -> None:
    assert overlaps(TRAIN, [TRAIN[1], "Something else."]) == [Overlap(1, 0, Likeness.EXACT)]


def test_the_same_letters_and_digits_are_loose() -> None:
    assert overlaps(TRAIN, ["what is 2 + 3"]) == [Overlap(2, 0, Likeness.LOOSE)]


def test_texts_without_letters_and_digits_are_not_alike() -> None:
    assert overlaps(["$+$", "$=$"], ["$-$"]) == []


def test_many_common_words_are_near_however_the_text_is_set() -> None:
    one = r"Compute $\dfrac{1}{2}+\frac 13$ of the number of all the bases that are less than ten."
    other = r"Compute \(\frac{1}{2} + \dfrac{1}{3}\) of the number of all the bases that are less than ten, please."
    assert overlaps([one], [other]) == [Overlap(0, 0, Likeness.NEAR)]


def test_short_problems_are_near_by_the_share_of_their_ngrams_that_is_in_both() -> None:
    train = ["one two three four five six seven eight nine ten eleven"]
    # 6 of 7 and 9 n-grams are in both: 6 of 10 different ones, and then 6 of 11.
    other = "one two three four five six seven eight nine ten a b c"
    assert overlaps(train, [other]) == [Overlap(0, 0, Likeness.NEAR)]
    assert overlaps(train, [other + " d"]) == []


def test_long_problems_are_near_by_the_share_of_the_shorter_one() -> None:
    train = ["one two three four five six seven eight nine ten eleven twelve thirteen fourteen"]
    # 6 of 10 n-grams, and then 5.
    assert overlaps(train, [train[0].replace("eleven", "x")]) == [Overlap(0, 0, Likeness.NEAR)]
    assert overlaps(train, [train[0].replace("ten", "x")]) == []


def test_other_instructions_for_the_answer_do_not_hide_a_problem() -> None:
    others = [f"Problem number {n} speaks of something else altogether. {AS_M_PLUS_N}" for n in "abcdefgh"]
    assert overlaps([AMC23 + AS_K_PLUS_M], [AMC23 + AS_M_PLUS_N, *others]) == [Overlap(0, 0, Likeness.NEAR)]


def test_common_instructions_alone_make_no_overlap() -> None:
    train = [f"Let a box hold {n} blue balls and some red ones. {AS_M_PLUS_N}" for n in ("two", "six", "nine")]
    assert overlaps(train, [f"How likely is rain? {AS_M_PLUS_N}"]) == []


def test_a_phrase_within_a_problem_is_no_overlap() -> None:
    assert (
        overlaps(["How many three digit numbers are there?"], [TRAIN[0] + " How many three digit numbers are there?"])
        == []
    )


def test_chinese_is_compared_by_characters() -> None:
    train = ["已知等差数列的首项为一,公差为二,求前十项的和。"]
    assert overlaps(train, ["已知等差数列的首项为一,公差为二,求它的前十项的和。"]) == [Overlap(0, 0, Likeness.NEAR)]


def test_counts_are_of_evaluation_problems_by_their_closest_overlap() -> None:
    found = [
        Overlap(0, 0, Likeness.EXACT),
        Overlap(1, 0, Likeness.NEAR),
        Overlap(2, 1, Likeness.NEAR),
        Overlap(3, 2, Likeness.LOOSE),
    ]
    assert count_contaminated(found) == {Likeness.EXACT: 1, Likeness.LOOSE: 2, Likeness.NEAR: 3}


# ---- dcpo data check


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str]:
    """Exit code and output."""
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", *words])
    return ended.value.code, capsys.readouterr().out


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {}
    for name, texts in {"train": TRAIN, "dirty": [TRAIN[1].upper(), "New."], "clean": ["New."]}.items():
        paths[name] = str(tmp_path / f"{name}.jsonl")
        Path(paths[name]).write_text("\n".join(json.dumps({"problem": text, "answer": "1"}) for text in texts))
    return paths


def test_the_check_prints_a_table_and_fails_on_an_overlap(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = checked(capsys, files["train"], files["dirty"], files["clean"])
    rows = [line.split() for line in output.splitlines() if line.startswith("train ")]
    head = ["train", "evaluation", "problems", "exact", "loose", "near"]
    assert (code, rows) == (1, [head, ["train", "dirty", "2", "0", "1", "1"], ["train", "clean", "1", "0", "0", "0"]])
    assert checked(capsys, files["train"], files["clean"])[0] == 0


def test_the_check_lists_the_pairs_for_a_person(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, output = checked(capsys, files["train"], files["dirty"], "--list")
    assert f"loose: dirty 0 and train 1\n  {TRAIN[1].upper()}\n  {TRAIN[1]}\n" in output


def test_the_check_writes_json_for_a_program(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, output = checked(capsys, files["train"], files["dirty"], files["clean"], "--json")
    dirty, clean = json.loads(output)
    assert (code, clean["problems"], clean["near"], clean["pairs"]) == (1, 1, 0, [])
    assert (dirty["exact"], dirty["loose"], dirty["near"]) == (0, 1, 1)
    assert dirty["pairs"][0]["train_problem"] == TRAIN[1]


def test_the_check_refuses_what_names_no_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(capsys, "gsm8k=none.jsonl", "amc24")[0] == 2


# ---- real ones


def problems(folder: Path, name: str) -> list[str]:
    return [problem.problem for problem in load(problem_source(str(folder / f"{name}.jsonl"))).problems]


def contaminated(train: list[str], evaluation: list[str]) -> tuple[int, ...]:
    return tuple(count_contaminated(overlaps(train, evaluation)).values())


def test_real_overlaps_of_math_with_its_own_test_set_are_found(data_folder: Path) -> None:
    exact, loose, near = contaminated(problems(data_folder, "math_train"), problems(data_folder, "math500"))
    assert (exact, loose) == (0, 1)
    assert near >= 17


@pytest.mark.system
def test_real_overlaps_are_found_and_none_is_invented(data_folder: Path) -> None:
    """At least what an independent count found, by Jaccard similarity and for amc23 by hand; docs/data.md has all."""
    names = ("math_train", "dapo_math_17k", "gsm8k_train", "math_test", "math500", "amc23", "aime24", "aime25")
    sets = {name: problems(data_folder, name) for name in names}
    for train, evaluation, least in (
        ("math_train", "math_test", (0, 11, 166)),
        ("dapo_math_17k", "amc23", (5, 8, 23)),
        ("dapo_math_17k", "math500", (1, 7, 18)),
        ("dapo_math_17k", "math_test", (943, 976, 1177)),
    ):
        found = contaminated(sets[train], sets[evaluation])
        assert all(count >= expected for count, expected in zip(found, least, strict=True)), (train, evaluation, found)
    for train in ("math_train", "dapo_math_17k", "gsm8k_train"):
        assert contaminated(sets[train], sets["aime24"] + sets["aime25"]) == (0, 0, 0)
    assert contaminated(sets["gsm8k_train"], sets["amc23"] + sets["math500"]) == (0, 0, 0)
