"""What a start of the learner begins from, and what it refuses of a run that began with something else."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file
from transformers.utils import chat_template_utils

from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError, DcpoError, LedgerError
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.metrics.sink import Thinning
from learner import run_setup
from learner.initial_model import model_identity
from learner.ledger.ledger import Ledger, write_evaluation
from learner.ledger.reader import EvaluationRow
from learner.problems import training_problems
from learner.run_setup import RunSetup, prepare, set_up, sinks_of
from tests.learner.small_run import make_config
from tests.tiny_model import make_tiny_model

DATED = "today {{ strftime_now('%d %b').lower() }}\n{% for m in messages %}{{ m['content'] }}{% endfor %}\n"

Begin = Callable[..., RunSetup]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder, 0)
    return folder


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Starts of one run, each as of a moment; one ends when the next begins."""
    (tmp_path / "problems.jsonl").write_text(
        "".join(json.dumps({"problem": f"{n} + 1", "answer": str(n + 1)}) + "\n" for n in range(16))
    )
    running: list[RunSetup] = []

    def one(model: Path, now: datetime = datetime(2026, 3, 7, 12), **data: Any) -> RunSetup:
        if running:
            running.pop().ledger.abandon()
        for module in (run_setup, chat_template_utils):
            monkeypatch.setattr(module, "datetime", _at(now))
        config = _config(tmp_path, model, **data)
        running.append(set_up(config, prepare(config, training_problems(config.data))))
        return running[-1]

    yield one
    for run in running:
        run.ledger.abandon()


def _config(folder: Path, model: Path, **data: Any) -> RunConfig:
    data = {"source": str(folder / "problems.jsonl"), "system_prompt": "", "max_prompt_tokens": 100} | data
    return make_config(folder / "run", model={"path": str(model), "dtype": "float32"}, data=data)


def _at(moment: datetime) -> type[datetime]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return moment.astimezone(tz) if tz else moment

    return Clock


def copied(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    return folder


def first_prompt(run: RunSetup) -> tuple[int, ...]:
    return next(iter(run.intake.prompts.values())).token_ids


def test_a_run_whose_template_writes_the_date_has_the_prompts_of_its_first_day(
    model: Path, tmp_path: Path, begin: Begin
) -> None:
    dated = copied(model, tmp_path / "dated")
    (dated / "chat_template.jinja").write_text(DATED)
    first = begin(dated, datetime(2026, 3, 7, 23, 59))
    run_id, prompt = first.run_id, first_prompt(first)
    for day in (8, 9):
        again = begin(dated, datetime(2026, 3, day))
        assert (again.run_id, first_prompt(again)) == (run_id, prompt)


def test_another_template_or_other_arguments_are_another_run(model: Path, tmp_path: Path, begin: Begin) -> None:
    chat = copied(model, tmp_path / "chat")
    (chat / "chat_template.jinja").write_text("{{ messages[0].content }}{% if brief %} be brief{% endif %}=")
    begin(chat)
    with pytest.raises(LedgerError, match="by the same tokenizer, template and arguments"):
        begin(chat, template_arguments={"brief": True})


def test_a_run_goes_on_with_a_copy_of_its_model_and_with_no_other(model: Path, tmp_path: Path, begin: Begin) -> None:
    run_id = begin(model).run_id
    assert begin(copied(model, tmp_path / "copy")).run_id == run_id
    make_tiny_model(tmp_path / "other", 1)
    with pytest.raises(LedgerError, match="a run goes on with the model that it began with"):
        begin(tmp_path / "other")
    # The same weights under another configuration are another model.
    settings = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 0.1}))
    with pytest.raises(LedgerError, match="has model "):
        begin(tmp_path / "copy")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_model_with_weights_that_are_no_numbers_is_refused(
    model: Path, tmp_path: Path, begin: Begin, value: float
) -> None:
    broken = copied(model, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.bfloat16)
    tensors["model.norm.weight"][3] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 tensors hold values that are no finite numbers: model\.norm\.weight;"):
        begin(broken)
    assert not (tmp_path / "run").exists()


def test_the_first_prompt_is_logged_as_text_with_its_tokens(
    model: Path, begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        begin(model, prompt_template="solve:\n" + "1" * 50 + "{problem}" + "2" * 30)
    assert f"the first prompt, 92 tokens: 'solve:\\n{'1' * 50}0 + 1{'2' * 30}'" in caplog.text


def test_a_tokenizer_with_an_id_beyond_the_embedding_is_refused(model: Path, tmp_path: Path, begin: Begin) -> None:
    sparse = copied(model, tmp_path / "sparse")
    state = json.loads((sparse / "tokenizer.json").read_text())
    words = state["model"]["vocab"]
    words[next(word for word in words if word.startswith("<unused"))] = 500
    (sparse / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="the tokenizer has ids up to 500, the embedding 64 rows"):
        begin(sparse)


def test_a_context_that_is_too_short_is_refused(model: Path, begin: Begin) -> None:
    with pytest.raises(ConfigError, match=r"takes 256 tokens, data\.max_prompt_tokens 250 and"):
        begin(model, max_prompt_tokens=250)


def test_a_refusal_is_one_line_with_exit_code_2(model: Path, tmp_path: Path, begin: Begin) -> None:
    for template in (
        "{{ raise_exception('no\\nsystem') }}",
        "{% for p in messages[0].content %}{{ p.text }}{% endfor %}",
    ):
        folder = copied(model, tmp_path / str(len(template)))
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(DcpoError) as refused:
            begin(folder)
        assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)


def test_a_checkpoint_without_its_head_is_refused_before_anything_is_written_or_loaded(
    model: Path, tmp_path: Path, begin: Begin
) -> None:
    headless = copied(model, tmp_path / "headless")
    tensors = load_file(headless / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"has not what would be published: 1 of them: lm_head\.weight"):
        begin(headless)
    assert not (tmp_path / "run").exists()


def test_metrics_of_steps_that_the_run_or_somebody_in_its_folder_measured_stay(tmp_path: Path) -> None:
    config = make_config(tmp_path, training={"whole_metrics_steps": 8})
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.jsonl").write_text('{"step": 33, "seconds": 1.0}\n')
    ledger = Ledger(tmp_path / "ledger")
    # A version comes when it comes: the first on or after a multiple of evaluation.every_steps is measured.
    write_evaluation(ledger, EvaluationRow(1, 11, 21, 4, "{}", "running"))
    for first, last in ((1, 199), (200, 200)):
        (sink,) = sinks_of(config, ledger)
        for step in range(first, last + 1):
            sink.write(step, {})
        sink.close()
    ledger.abandon()
    steps = {int(line["step"]) for line in read_metrics(tmp_path)}
    assert steps == {step for step in range(1, 201) if Thinning(8).keeps(step, 200)} | {21, 33}


def test_the_identity_of_a_model_is_made_of_its_files_bytes(model: Path) -> None:
    settings = json.loads((model / "config.json").read_text())
    shape = {name: settings[name] for name in settings.keys() - {"transformers_version", "dtype"}}
    file = xxhash.xxh3_128((model / "model.safetensors").read_bytes()).hexdigest()
    expected = hashlib.blake2b(
        f"{json.dumps(shape, sort_keys=True)}\nmodel.safetensors {file}".encode(), digest_size=16
    ).hexdigest()
    assert model_identity(model) == expected
