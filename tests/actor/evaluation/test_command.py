"""`dcpo eval` with the scripted engine, from its words to its files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from actor.evaluation.__main__ import main
from actor.evaluation.evaluator import architecture_of
from dcpo_async.devices import count_gpus
from dcpo_async.weights.store import write_snapshot
from tests.adapters.made import AdapterRun
from tests.system.services import write_problems
from tests.tiny_model import make_tiny_model

NUM_PROBLEMS = 12
SHORT = ("--max-prompt-tokens", "32", "--max-response-tokens", "16", "--system-prompt", "", "--engine", "scripted")

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        make_tiny_model(folder / name, seed)
    return folder / "one", folder / "two"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    write_problems(tmp_path / "sums.jsonl", NUM_PROBLEMS)
    return tmp_path / "sums.jsonl"


@pytest.fixture
def evaluate(tmp_path: Path, models: tuple[Path, Path], problems: Path) -> Evaluate:
    """Evaluates the first model, and returns what the summary says of it."""

    def evaluate(*words: str, out: Path = tmp_path / "out") -> dict[str, Any]:
        main([str(models[0]), "--data", str(problems), "--samples", "4", "--out", str(out), *SHORT, *words])
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        return summary["one"]

    return evaluate


def publish(store: Path, model: Path, *, version: int, run_id: str, step: int) -> Path:
    """A version of a run's weight store that holds this model."""
    write_snapshot(
        store,
        weights_version=version,
        run_id=run_id,
        incarnation=1,
        step=step,
        tensors=load_file(model / "model.safetensors"),
        skeleton_folder=model,
    )
    return store / f"v{version:08d}"


def lines(path: Path) -> dict[str, dict[str, Any]]:
    """The problems of a JSONL file by their text, without the time that they took."""
    parsed = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["problem"]: line | {"elapsed_seconds": None} for line in parsed}


def without_time(summary: dict[str, Any]) -> dict[str, Any]:
    return summary | {"seconds": None, "tokens_per_second": None}


def test_every_response_is_written_down_with_its_verdict(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate("--no-greedy", "--samples", "2")
    found = lines(tmp_path / "out" / "one" / "sums.jsonl")
    assert len(found) == NUM_PROBLEMS
    first = found["0+1="]
    assert (first["answer"], first["weights_version"], first["step"], len(first["responses"])) == ("1", None, None, 2)
    for index, response in enumerate(first["responses"]):
        assert (response["mode"], response["index"]) == ("sampled", index)
        assert response["correct"] == (response["text"] == "The answer is \\boxed{1}")
        assert response["extracted"] in ("1", "1+1")
        assert 1 <= response["num_tokens"] <= 16
        assert response["finish_reason"] == "length" or response["num_tokens"] <= 16
    seeds = [response["seed"] for line in found.values() for response in line["responses"]]
    assert len(set(seeds)) == 2 * NUM_PROBLEMS


def test_figures_are_those_of_the_lines(evaluate: Evaluate, tmp_path: Path) -> None:
    summary = evaluate()
    found = lines(tmp_path / "out" / "one" / "sums.jsonl").values()
    sampled = [r for line in found for r in line["responses"] if r["mode"] == "sampled"]
    greedy = [r for line in found for r in line["responses"] if r["mode"] == "greedy"]
    figures = summary["sets"]["sums"]
    assert (len(greedy), len(sampled)) == (NUM_PROBLEMS, 4 * NUM_PROBLEMS)
    assert figures["greedy"]["accuracy"]["mean"] == pytest.approx(sum(r["correct"] for r in greedy) / len(greedy))
    assert figures["sampled"]["accuracy"]["mean"] == pytest.approx(sum(r["correct"] for r in sampled) / len(sampled))
    assert figures["sampled"]["response_length"] == pytest.approx(sum(r["num_tokens"] for r in sampled) / len(sampled))
    assert list(figures["sampled"]["pass_at"]) == ["1", "2", "4"]
    assert summary["tokens"] == sum(r["num_tokens"] for r in (*greedy, *sampled))


def test_the_tables_are_printed_and_written(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate()
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "table.md").read_text()
    assert "| one   | sums |       12 |" in printed


def test_an_evaluation_that_was_ended_goes_on_to_the_same_result(evaluate: Evaluate, tmp_path: Path) -> None:
    undisturbed = evaluate(out=tmp_path / "undisturbed")
    evaluate()
    log = tmp_path / "out" / "one" / "sums.jsonl"
    content = log.read_bytes()
    log.write_bytes(content[: len(content) // 2])
    kept = content[: len(content) // 2].rpartition(b"\n")[0]
    summary = evaluate()
    assert log.read_bytes().startswith(kept)
    assert lines(log) == lines(tmp_path / "undisturbed" / "one" / "sums.jsonl")
    assert without_time(summary) == without_time(undisturbed)


def test_a_finished_evaluation_needs_no_engine(evaluate: Evaluate, models: tuple[Path, Path], tmp_path: Path) -> None:
    first = evaluate()
    assert evaluate("--engine", "scripted", "--tokens-per-second", "1e-9") == first


def test_more_problems_later_keep_the_ones_that_are_there(evaluate: Evaluate, tmp_path: Path) -> None:
    assert evaluate("--limit", "5")["sets"]["sums"]["problems"] == 5
    few = (tmp_path / "out" / "one" / "sums.jsonl").read_bytes()
    assert evaluate()["sets"]["sums"]["problems"] == NUM_PROBLEMS
    assert (tmp_path / "out" / "one" / "sums.jsonl").read_bytes().startswith(few)
    assert evaluate("--limit", "5")["sets"]["sums"]["problems"] == 5


def test_a_model_that_joins_later_stands_beside_the_earlier_ones(
    models: tuple[Path, Path], problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in models:
        main([str(model), "--data", str(problems), "--samples", "2", "--out", str(tmp_path / "out"), *SHORT])
    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())) == ["one", "two"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| one" in table
    assert "| two" in table
    assert capsys.readouterr().out.endswith(table)


def test_several_models_and_sets_have_rows_and_an_average(
    models: tuple[Path, Path], problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_problems(tmp_path / "few.jsonl", 4)
    named = [f"before={models[0]}", str(models[1])]
    main([*named, "--data", str(problems), str(tmp_path / "few.jsonl"), "--out", str(tmp_path / "out"), *SHORT])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary) == ["before", "two"]
    assert list(summary["two"]["sets"]) == ["sums", "few", "average"]
    means = {name: figures["sampled"]["accuracy"]["mean"] for name, figures in summary["two"]["sets"].items()}
    assert means["average"] == pytest.approx((means["sums"] + means["few"]) / 2)
    assert capsys.readouterr().out.count("| average |") == 2 + 4


def test_other_settings_are_refused_and_may_overwrite(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate()
    with pytest.raises(SystemExit) as refusal:
        evaluate("--temperature", "0.6")
    assert refusal.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcpo eval: --out {tmp_path / 'out'} holds results of other settings: temperature 1.0 there, 0.6 here; "
        "choose another --out, or --overwrite them"
    )
    evaluate("--temperature", "0.6", "--overwrite")
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["temperature"] == 0.6


def test_other_weights_in_the_same_folder_are_refused(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str], problems: Path
) -> None:
    make_tiny_model(tmp_path / "moving", seed=1)
    words = [str(tmp_path / "moving"), "--data", str(problems), "--samples", "0", "--out", str(tmp_path / "o"), *SHORT]
    main(words)
    make_tiny_model(tmp_path / "moving", seed=2)
    with pytest.raises(SystemExit):
        main(words)
    assert "model moving '" in capsys.readouterr().err.splitlines()[-1]


def test_stored_versions_of_several_runs_are_measured_with_run_version_and_step(
    models: tuple[Path, Path], problems: Path, tmp_path: Path
) -> None:
    first = publish(tmp_path / "a", models[0], version=3, run_id="run-a", step=8)
    second = publish(tmp_path / "b", models[1], version=3, run_id="run-b", step=12)
    named = [f"a={first}", f"b={second}", str(models[0])]
    main([*named, "--data", str(problems), "--samples", "2", "--out", str(tmp_path / "out"), *SHORT])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    stamps = {name: (entry["run"], entry["weights_version"], entry["step"]) for name, entry in summary.items()}
    assert stamps == {"a": ("run-a", 3, 8), "b": ("run-b", 3, 12), "one": (None, None, None)}
    line = lines(tmp_path / "out" / "b" / "sums.jsonl")["0+1="]
    assert (line["weights_version"], line["step"]) == (3, 12)


def test_adapters_of_a_run_are_measured_beside_the_model_that_they_are_for(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = AdapterRun(tmp_path)
    run.publish_base(1)
    for version in (2, 3):
        run.publish_adapter(version, base_version=1)
    named = [f"{name}={run.store}/v{version:08d}" for name, version in (("two", 2), ("three", 3), ("base", 1))]
    words = [*named, "--data", str(problems), "--samples", "2", "--out", str(tmp_path / "out"), *SHORT]
    main(words)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {name: entry["weights_version"] for name, entry in summary.items()} == {"two": 2, "three": 3, "base": 1}
    shutil.copytree(run.store / "v00000003", tmp_path / "alone")
    with pytest.raises(SystemExit) as refusal:
        main([f"alone={tmp_path}/alone", *words[3:]])
    assert refusal.value.code == 2
    assert "alone is an adapter to v00000001 of its run, which does not lie beside it" in capsys.readouterr().err


def test_an_adapter_to_other_weights_than_their_manifest_says_is_refused(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = AdapterRun(tmp_path)
    run.publish_base(1)
    run.publish_adapter(2, base_version=1)
    config = run.store / "v00000001" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(SystemExit):
        main([f"x={run.store}/v00000002", "--data", str(problems), "--out", str(tmp_path / "out"), *SHORT])
    assert "v00000001/config.json has " in capsys.readouterr().err.splitlines()[-1]


def test_the_same_weights_under_another_runs_name_are_refused(
    models: tuple[Path, Path], problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in "ab":
        folder = publish(tmp_path / run, models[0], version=1, run_id=f"run-{run}", step=0)
        words = [f"start={folder}", "--data", str(problems), "--samples", "1", "--out", str(tmp_path / "out"), *SHORT]
        if run == "a":
            main(words)
    with pytest.raises(SystemExit):
        main(words)
    assert "version start 'run-a 1' there, 'run-b 1' here" in capsys.readouterr().err.splitlines()[-1]


def test_a_version_that_is_not_what_its_manifest_says_is_refused(
    models: tuple[Path, Path], problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = publish(tmp_path / "store", models[0], version=1, run_id="run-a", step=0)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(SystemExit) as refusal:
        main([str(folder), "--data", str(problems), "--out", str(tmp_path / "out"), *SHORT])
    said = capsys.readouterr().err.splitlines()[-1]
    assert refusal.value.code == 2
    assert said.startswith(f"dcpo eval: model {folder}: {folder}/config.json has ")
    assert said.endswith("; without manifest.json it is a model of no run")


def test_models_that_one_engine_can_take_are_told_from_others(models: tuple[Path, Path], tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "wider", seed=0, hidden_size=128)
    assert architecture_of(models[0]) == architecture_of(models[1])
    assert architecture_of(models[0]) != architecture_of(tmp_path / "wider")


BAD_INPUTS = {
    "no model": ("--data {sums}", "name models to measure, or --learner ADDRESS"),
    "models and a learner": ("{one} --learner tcp://127.0.0.1:9 --data {sums}", "one of the two"),
    "a model that is missing": ("{folder}/none --data {sums}", "model {folder}/none: no such folder"),
    "a model without config.json": ("{folder} --data {sums}", "model {folder}: no config.json in it"),
    "two models of one name": ("{one} one={two} --data {sums}", "two models are called one; write NAME=FOLDER"),
    "an unknown set": ("{one} --data aime99", "'aime99' names no problems; give one of dapo-math-17k, gsm8k, "),
    "a file that is missing": ("{one} --data aime24={folder}/none.jsonl", "{folder}/none.jsonl does not exist"),
    "two sets of one name": ("{one} --data {sums} {sums}", "two problem sets are called sums"),
    "no samples and nothing greedy": ("{one} --data {sums} --samples 0 --no-greedy", "--samples 0: it must be"),
    "a limit of none": ("{one} --data {sums} --limit 0", "--limit 0: it must be at least 1"),
    "a cold temperature": ("{one} --data {sums} --temperature 0", "--temperature 0: it must be above 0"),
    "more tokens than the model takes": (
        "{one} --data {sums} --max-response-tokens 1000 --system-prompt= --engine scripted",
        "takes 256 tokens, --max-prompt-tokens 1024 and --max-response-tokens 1000 are 2024; lower one of them",
    ),
    "a system prompt that no template takes": (
        "{one} --data {sums} --max-prompt-tokens 8 --max-response-tokens 8 --engine scripted",
        "the tokenizer has no chat template, so there is no system message",
    ),
    "template arguments that are no table": (
        "{one} --data {sums} --template-arguments x",
        "x: no JSON object, such as",
    ),
    "template arguments without a template": (
        '{one} --data {sums} --template-arguments {{"a":1}} --system-prompt= --max-prompt-tokens 8 '
        "--max-response-tokens 8 --engine scripted",
        "no chat template that would read data.template_arguments",
    ),
    "an empty stop text": ("{one} --data {sums} --stop=", "--stop '': every text contains it"),
    "tensor parallel without GPUs": ("{one} --data {sums} --tensor-parallel 2", "--tensor-parallel 2 needs --gpus"),
    "a learner elsewhere without keys": ("--learner tcp://192.0.2.1:9 --data {sums}", "no keys are given"),
}
"""Words and what is said of them."""


@pytest.mark.parametrize("what", BAD_INPUTS)
def test_bad_input_is_answered_with_one_line(
    what: str, models: tuple[Path, Path], problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = BAD_INPUTS[what]
    names = {"one": models[0], "two": models[1], "sums": problems, "folder": tmp_path}
    with pytest.raises(SystemExit) as refusal:
        main([*words.format(**names).split(), "--out", str(tmp_path / "out")])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dcpo")]
    assert refusal.value.code == 2
    assert line.startswith("dcpo eval: ")
    assert said.format(**names) in line


@pytest.mark.skipif(count_gpus() > 0, reason="this machine has GPUs")
def test_gpus_that_are_not_there_are_refused(
    models: tuple[Path, Path], problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(os.environ)
    with pytest.raises(SystemExit) as refusal:
        main([str(models[0]), "--data", str(problems), "--gpus", "0"])
    assert refusal.value.code == 2
    assert "--gpus 0: this machine has no GPU" in capsys.readouterr().err
    assert dict(os.environ) == before


def test_problems_that_stand_in_the_training_set_are_counted_out_loud(
    evaluate: Evaluate, problems: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = tmp_path / "trained.jsonl"
    trained.write_text("".join(problems.read_text().splitlines(keepends=True)[:3]))
    evaluate("--trained-on", str(trained))
    (warning,) = [line for line in caplog.messages if "training set" in line]
    assert "3 of 12 problems stand in the training set" in warning
    caplog.clear()
    trained.write_text(json.dumps({"problem": "What is six times seven?", "answer": "42"}) + "\n")
    evaluate("--trained-on", str(trained))
    assert not [line for line in caplog.messages if "training set" in line]


def test_keeping_the_best_is_for_the_versions_of_a_run(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate("--keep-best")
    assert "--keep-best needs --learner" in capsys.readouterr().err
