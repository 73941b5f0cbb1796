"""What is found of the run's own evaluations: figures that tools read, and the best version."""

import asyncio
import json
import logging
from pathlib import Path

import pytest
import torch

from dcpo_async.config import GradingSettings
from dcpo_async.errors import ConfigError
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.protocol.messages import GroupMessage
from dcpo_async.records import Prompt
from dcpo_async.run_folder import RunFolder
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import verify, write_snapshot
from learner.evaluations.answers import answered, mean_rewards, results_of
from learner.evaluations.reports import EvaluationReports
from learner.ledger.reader import EvaluationRow

PROMPTS = [(name, Prompt(f"{name}-{i}", f"problem {i}", "1", (1,))) for name in ("a", "b") for i in range(2)]
SETTINGS = {"samples": 2}


def group(*rewards: float, reason: str = "equal") -> GroupMessage:
    number = len(rewards)
    return GroupMessage(
        position=0,
        attempt=1,
        lengths=tuple(range(3, 3 + number)),
        segments=(((1, 3),),) * number,
        finish_reasons=("length", "stop")[:number],
        rewards=rewards,
        reasons=(reason,) * number,
        text_lengths=(0,) * number,
    )


def found(*rewards: tuple[float, float]) -> dict[int, dict[str, object]]:
    return {number: answered(group(*pair), seconds=number + 0.5) for number, pair in enumerate(rewards)}


def publish(folder: Path, version: int, step: int) -> Manifest:
    (folder / "skeleton").mkdir(exist_ok=True)
    (folder / "skeleton" / "config.json").write_text("{}")
    return write_snapshot(
        folder / "weights",
        weights_version=version,
        run_id="run",
        incarnation=1,
        step=step,
        tensors={"w": torch.zeros(2) + version},
        skeleton_folder=folder / "skeleton",
    )


def complete(reports: EvaluationReports, folder: Path, manifest: Manifest, *rewards: tuple[float, float]) -> None:
    row = EvaluationRow(1, manifest.weights_version, manifest.step, len(rewards), "", "running")
    results = results_of(PROMPTS, found(*rewards), "sampled", GradingSettings(), row)
    where = version_folder(folder / "weights", manifest.weights_version)
    asyncio.run(reports.complete(where, manifest, results, mean_rewards(PROMPTS, found(*rewards))))


def test_what_the_ledger_keeps_of_an_answer_is_enough_for_its_figures() -> None:
    kept = json.loads(json.dumps(answered(group(1.0, 0.0), seconds=2.5)))
    assert kept == {
        "rewards": [1.0, 0.0],
        "reasons": ["equal", "equal"],
        "lengths": [3, 4],
        "finish_reasons": ["length", "stop"],
        "seconds": 2.5,
    }


def test_a_response_is_right_where_it_has_the_highest_reward() -> None:
    row = EvaluationRow(1, 1, 0, 1, "", "running")
    own = GradingSettings(reward="a:b", reward_range=(-1.0, 2.0), reward_digest="0" * 16)
    kept = {0: answered(group(2.0, 1.0), 0.0)}
    for grading, right in ((own, [True, False]), (GradingSettings(), [False, True])):
        ((result,),) = results_of(PROMPTS[:1], kept, "sampled", grading, row).values()
        assert [response.correct for response in result.responses] == right
    none = {0: answered(group(0.0, 0.0, reason="no_answer"), 0.0)}
    ((result,),) = results_of(PROMPTS[:1], none, "sampled", GradingSettings(), row).values()
    assert [response.extracted for response in result.responses] == [None, None]


def test_figures_go_where_tools_read_them_and_the_best_version_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    reports = EvaluationReports(folder, SETTINGS, keep_best=True)
    half, all_right = ((1.0, 0.0),) * 4, ((1.0, 1.0),) * 4
    for version, rewards in enumerate((half, all_right, half), start=1):
        complete(reports, tmp_path, publish(tmp_path, version, 10 * version), *rewards)
    reports.incomplete(40, answered=1, num_problems=4)
    reports.close()
    lines = read_metrics(folder.evaluation)
    assert [line.get("average/avg@2") for line in lines] == [0.5, 1.0, 0.5, None]
    assert [line["answered_share"] for line in lines] == [1.0, 1.0, 1.0, 0.25]
    assert lines[0]["a/reward"] == 0.5
    assert lines[0]["a/truncated, sampled"] == 0.5
    summary = json.loads((folder.evaluation / "summary.json").read_text())
    assert [entry["seconds"] for entry in summary.values()] == [3.5] * 3
    assert verify(folder.evaluation / "best").weights_version == 2
    assert (folder.evaluation / "table.md").read_text().count("step-00000020-v2") > 1


def test_the_same_again_changes_nothing_and_a_later_start_goes_on(tmp_path: Path) -> None:
    folder, manifest = RunFolder(tmp_path), publish(tmp_path, 1, 10)
    for _ in range(2):
        reports = EvaluationReports(folder, SETTINGS, keep_best=False)
        complete(reports, tmp_path, manifest, *((1.0, 0.0),) * 4)
        reports.close()
    assert len(read_metrics(folder.evaluation)) == 1
    assert len(json.loads((folder.evaluation / "summary.json").read_text())) == 1


def test_results_of_other_settings_are_refused_with_what_to_do(tmp_path: Path) -> None:
    reports = EvaluationReports(RunFolder(tmp_path), SETTINGS, keep_best=False)
    complete(reports, tmp_path, publish(tmp_path, 1, 10), *((1.0, 0.0),) * 4)
    with pytest.raises(ConfigError, match="another evaluation is writing there"):
        EvaluationReports(RunFolder(tmp_path), SETTINGS, keep_best=False)
    reports.close()
    expected = r"evaluation: .* holds results of other settings: samples 2 there, 4 here; go back to those, or move"
    with pytest.raises(ConfigError, match=expected):
        EvaluationReports(RunFolder(tmp_path), {"samples": 4}, keep_best=False)


def test_a_best_version_that_cannot_be_kept_costs_no_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, manifest = RunFolder(tmp_path), publish(tmp_path, 1, 10)
    weights = version_folder(folder.weights, 1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    reports = EvaluationReports(folder, SETTINGS, keep_best=True)
    with caplog.at_level(logging.WARNING):
        complete(reports, tmp_path, manifest, *((1.0, 0.0),) * 4)
    reports.close()
    assert "step-00000010-v1 is measured, and not kept" in caplog.text
    assert len(json.loads((folder.evaluation / "summary.json").read_text())) == 1
