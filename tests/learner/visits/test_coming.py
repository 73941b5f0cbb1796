"""Several sources in a run: from their files to prompts, leases and the folder that is bound to them."""

import json
from collections import Counter
from pathlib import Path

import pytest

from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError, LedgerError
from learner.coordinator.intake import Intake
from learner.ledger.ledger import Ledger
from learner.problems import training_problems
from learner.run_prompts import data_record
from learner.run_setup import Prepared, prepare
from learner.sizing.report import data_lines, in_words
from tests.learner.small_run import VOCAB_SIZE, answer, make_config, publish
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder, 0)
    return folder


def written(path: Path, letters: str) -> str:
    path.write_text("\n".join(json.dumps({"problem": f"{letter}?", "answer": letter}) for letter in letters))
    return str(path)


def config_of(folder: Path, model: Path, weights: tuple[float | None, float | None] = (3, 1)) -> RunConfig:
    one, two = written(folder / "one.jsonl", "abcdefghi"), written(folder / "two.jsonl", "iabjklmno")
    sources = [
        {"source": one, "weight": weights[0]},
        {"source": two, "weight": weights[1], "prompt_template": "of two: {problem}"},
    ]
    data = {"sources": [{k: v for k, v in source.items() if v is not None} for source in sources], "system_prompt": ""}
    settings = {"path": str(model), "dtype": "float32"}
    return make_config(
        folder / "run", groups_per_step=1, max_lag=3, data={**data, "max_prompt_tokens": 20}, model=settings
    )


def prepared(config: RunConfig) -> Prepared:
    return prepare(config, training_problems(config.data))


def test_each_source_has_its_own_template_and_prompts_their_identity(tmp_path: Path, model: Path) -> None:
    config = config_of(tmp_path, model)
    both = prepared(config)
    assert Counter(prompt.source for prompt in both.prompts.encoded.prompts) == {"one": 9, "two": 6}
    texts = [both.tokenizer.decode(prompt.token_ids) for prompt in both.prompts.encoded.prompts]
    assert (texts[0], texts[9]) == ("a?", "of two: j?")
    data = {"source": str(tmp_path / "one.jsonl"), "system_prompt": "", "max_prompt_tokens": 20}
    one = make_config(tmp_path / "alone", max_lag=3, data=data)
    alone = prepared(one.model_copy(update={"model": config.model}))
    assert [prompt.id for prompt in alone.prompts.encoded.prompts] == [
        prompt.id for prompt in both.prompts.encoded.prompts[:9]
    ]


def test_what_was_left_out_is_told_by_source_and_reason(tmp_path: Path, model: Path) -> None:
    found = prepared(config_of(tmp_path, model))
    assert in_words(found.prompts.left_out) == "one: none; two: in an earlier source 3"
    record = data_record(found.problems, found.prompts)
    assert (record["rows"], record["prompts"], record["left_out"]["in an earlier source"]) == (18, 15, 3)
    assert record["sources"]["two"]["prompts"] == 6
    lines = list(data_lines(found.prompts.left_out, found.prompts.encoded, found.tokenizer))
    assert lines[0].startswith("data: 15 prompts of one, two, the longest has 10 tokens; left out: one: none; two")
    assert [line.split(": ", 1)[1] for line in lines if line.startswith("prompt ")] == ["'a?'", "'of two: j?'"]


def test_a_source_of_which_no_prompt_is_left_is_named(tmp_path: Path, model: Path) -> None:
    config = config_of(tmp_path, model)
    one, two = config.data.sources
    long = two.model_copy(update={"prompt_template": "{problem}" + "." * 50})
    data = config.data.model_copy(update={"sources": (one, long)})
    with pytest.raises(ConfigError, match=r"^two: no prompt is left of 6 problems"):
        prepared(config.model_copy(update={"data": data}))


def intake_of(config: RunConfig) -> Intake:
    ledger = Ledger(config.folder / "ledger")
    try:
        return Intake(config, prepared(config).prompts.encoded.prompts, VOCAB_SIZE, ledger)
    except LedgerError:
        ledger.abandon()
        raise


def visited(intake: Intake, num_steps: int) -> list[tuple[str, int, str]]:
    """Source, visit and prompt of each lease, of one group to a step."""
    seen = []
    for _ in range(num_steps):
        step = intake.ledger.next_batch_step()
        version = publish(intake, step)
        lease = intake.grant(b"a", now=0.0)
        assert lease is not None
        seen.append((intake.prompts[lease.prompt_id].source, lease.visit, lease.prompt_id))
        intake.accept(b"a", answer(lease, version))
        intake.commit_batch(step)
    return seen


def test_a_resumed_run_goes_on_with_the_same_mixture_and_its_folder_is_bound_to_the_weights(
    tmp_path: Path, model: Path
) -> None:
    config = config_of(tmp_path, model)
    intake = intake_of(config)
    seen = visited(intake, 17)
    intake.ledger.close()
    intake = intake_of(config)
    seen += visited(intake, 15)
    intake.ledger.close()
    assert Counter(source for source, _, _ in seen) == {"one": 24, "two": 8}
    undisturbed = intake_of(config.model_copy(update={"folder": tmp_path / "again"}))
    assert visited(undisturbed, 32) == seen
    undisturbed.ledger.close()
    for weights in ((1, 1), (None, None)):
        with pytest.raises(LedgerError, match=r"has sources 9 at 3\.0, 6 at 1\.0, now it is"):
            intake_of(config_of(tmp_path, model, weights))


def test_without_weights_every_prompt_is_visited_once_in_an_epoch(tmp_path: Path, model: Path) -> None:
    intake = intake_of(config_of(tmp_path, model, (None, None)))
    assert len({prompt for _, _, prompt in visited(intake, 15)}) == 15
    intake.ledger.close()


def test_a_source_too_small_for_its_weight_is_refused_before_anything_is_written(tmp_path: Path, model: Path) -> None:
    config = config_of(tmp_path, model, (1, 9))
    small = config.model_copy(update={"lag": config.lag.model_copy(update={"max_lag": 8})})
    with pytest.raises(ConfigError, match="source two has 6 usable prompts; with its weight of 9 it needs 10"):
        prepared(small)
    assert not config.folder.exists()
