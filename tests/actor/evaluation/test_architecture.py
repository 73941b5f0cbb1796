"""Which models can take turns in one engine."""

from pathlib import Path

from actor.evaluation.evaluator import architecture_of
from dcpo_async.weights.places import version_folder
from tests.adapters.made import AdapterRun


def test_adapters_of_one_run_take_turns_and_no_others(tmp_path: Path) -> None:
    runs = [AdapterRun(tmp_path / name, run_id=name) for name in ("run", "other")]
    for run in runs:
        run.publish_base(1)
        for version in (2, 3):
            run.publish_adapter(version, 1)
    first, second = (architecture_of(version_folder(runs[0].store, version)) for version in (2, 3))
    assert first == second
    assert first != architecture_of(version_folder(runs[1].store, 2))
    whole = architecture_of(version_folder(runs[0].store, 1))
    assert first != whole
    assert whole == architecture_of(tmp_path / "run" / "base")
