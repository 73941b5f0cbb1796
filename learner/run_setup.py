"""What a start of the learner begins from: problems, prompts, the ledger and its identity, and what is written down.

Tokenizers and the ledger bring transformers and torch, seconds of import: the launcher imports this module only once
the command line and the settings are known to be sound.
"""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dcpo_async import __version__
from dcpo_async.config import RunConfig
from dcpo_async.durable import write_json, write_text
from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.metrics.jsonl import MetricsWriter, measured_steps
from dcpo_async.metrics.sink import Sink, Thinning
from dcpo_async.model_folder import load_tokenizer
from dcpo_async.prompts import LoadedProblems
from dcpo_async.run_folder import RunFolder
from dcpo_async.weights.store import newest_policy
from learner.coordinator.intake import Intake
from learner.evaluations.problems import HeldOut, held_out
from learner.initial_model import model_identity
from learner.ledger.ledger import Ledger, expect_meta
from learner.ledger.reader import evaluations
from learner.life.live_settings import settle
from learner.problems import TrainingProblems
from learner.run_prompts import RunPrompts, data_record, run_prompts
from learner.sizing.fit import needs, tight, told
from learner.sizing.machine import Machine
from learner.sizing.memory import Plan
from learner.sizing.model import SizedModel, check_model
from learner.sizing.report import data_lines, evaluation_lines, grading_line, in_words, shown, size_lines
from learner.starts import write_start
from learner.visits.coming import order_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("learner")


@dataclass(frozen=True, slots=True)
class RunSetup:
    """A run that may begin or go on."""

    run_id: str
    ledger: Ledger
    intake: Intake
    held_out: HeldOut
    is_finished: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of a run before anything is written or loaded."""

    problems: TrainingProblems
    measured: Mapping[str, LoadedProblems]
    tokenizer: "PreTrainedTokenizerBase"
    prompts: RunPrompts
    held_out: HeldOut
    model: SizedModel
    rendered_at: datetime


def prepare(
    config: RunConfig, problems: TrainingProblems, measured: Mapping[str, LoadedProblems] | None = None
) -> Prepared:
    """Encode the prompts, and see whether they, the settings and the model are made for each other.

    Args:
        measured: the problem sets of `evaluation.data`.

    Raises ConfigError where they are not.
    """
    tokenizer = load_tokenizer(Path(config.model.path), "model.path")
    adapter = None if config.adapter.rank is None else config.adapter
    model = SizedModel(Path(config.model.path), 2 if config.model.dtype == "bfloat16" else 4, adapter)
    model.require_weights()
    check_model(config, model.num_embeddings, max(tokenizer.get_vocab().values()))
    model.require_shared_by(config.training.sequence_parallel)
    now = datetime.now()
    prompts = run_prompts(config.data, problems, tokenizer, now)
    config.require_window(len(prompts.encoded.prompts))
    order_of(config, prompts.encoded.prompts, config.admission_window)
    measured = measured or {}
    asked = held_out(config, measured, tokenizer, model.num_embeddings, now)
    return Prepared(problems, measured, tokenizer, prompts, asked, model, now)


def require_room(config: RunConfig, model: SizedModel, plan: Plan, machine: Machine) -> None:
    """Raise ConfigError where a run does not fit a machine, with the smallest change with which it does."""
    if refusal := told(config, model.size, plan, machine, model.memory):
        raise ConfigError(f"model {config.model.path}: {refusal}")


def report(config: RunConfig, prepared: Prepared, plan: Plan, machine: Machine, *, is_elsewhere: bool) -> str:
    """All that is known of a run, for people."""
    size = prepared.model.size
    need = needs(config, size, plan, prepared.model.memory(plan))
    lines = [
        f"run folder {config.folder}; {described(config)}",
        *data_lines(prepared.prompts.left_out, prepared.prompts.encoded, prepared.tokenizer),
        grading_line(config),
        *evaluation_lines(config, prepared.held_out.sets),
        *size_lines(config, size, plan, need, machine, is_elsewhere=is_elsewhere),
    ]
    if is_tight := None if is_elsewhere else tight(need, machine):
        lines.append(f"warning: {is_tight}")
    return "\n".join(lines)


def set_up(config: RunConfig, prepared: Prepared) -> RunSetup:
    """Open the ledger, and write down settings and what became of the data.

    Raises:
        LedgerError: the folder holds another run, or a learner is running on it.
        ConfigError: the model cannot be read, or has weights that are no numbers.
    """
    folder, problems, path = RunFolder(config.folder), prepared.problems, Path(config.model.path)
    model = model_identity(path)
    config.folder.mkdir(parents=True, exist_ok=True)
    if others := config.folder.stat().st_mode & 0o077:
        log.warning(
            "others may enter %s (mode bits %03o): run chmod 700 on it, unless that is meant", config.folder, others
        )
    ledger = Ledger(folder.ledger)
    try:
        prepared = _as_begun(ledger, config, prepared)
        run_id = _identify(ledger, config, prepared.prompts.encoded.digest, model)
    except DcpoError:
        ledger.abandon()
        raise
    encoded, left_out = prepared.prompts.encoded, prepared.prompts.left_out
    log.info("%d prompts from %d rows; left out: %s", len(encoded.prompts), problems.num_rows, in_words(left_out))
    first = encoded.prompts[0]
    log.info("the first prompt, %d tokens: %s", len(first.token_ids), shown(first, prepared.tokenizer))
    log.info("%s", grading_line(config))
    intake = Intake(config, encoded.prompts, prepared.model.num_embeddings, ledger)
    intake.offer(newest_policy(folder.weights))
    log.info("%s", write_start(ledger, config.model_dump(mode="json"), __version__, datetime.now(UTC)))
    settle(ledger, config, ledger.starts())
    ledger.commit()
    write_text(folder.config, config.model_dump_json(indent=2))
    write_json(folder.data, data_record(problems, prepared.prompts))
    return RunSetup(run_id, ledger, intake, prepared.held_out, _is_finished(ledger, config))


def described(config: RunConfig) -> str:
    """The algorithm in one line, every threshold that shapes the loss with it."""
    algorithm, lag = config.algorithm, config.lag
    corrections = {
        "none": "no correction of π_old/π_behavior",
        "truncated": f"truncated correction min(π_old/π_behavior, {algorithm.importance_cap:g})",
        "masked": "masked correction, π_old/π_behavior within {:g} to {:g}".format(*algorithm.importance_mask),
    }
    anchors = {
        "behavior": "old = behavior: the ratio to the engine's log-probs corrects, and the clip bounds it",
        "proximal": f"old = proximal with {corrections[algorithm.correction]}",
    }
    return "; ".join(
        (
            f"{algorithm.advantage} advantages"
            + ("" if algorithm.half_life_visits is None else f", half-life {algorithm.half_life_visits:g} visits"),
            f"{algorithm.clip} clip of {algorithm.ratio} ratios, ε {algorithm.epsilon_low:g} and "
            f"{algorithm.epsilon_high:g}, r_max {algorithm.max_ratio:g}",
            *(["weighted by clipped ratios"] if algorithm.loss == "weighted" else []),
            f"{algorithm.loss_mean} {algorithm.otm_scale}",
            *(["dynamic sampling"] if algorithm.dynamic_sampling else []),
            *([f"{overlong} tokens of overlong shaping"] if (overlong := algorithm.overlong_buffer_tokens) else []),
            *(["truncated responses without weight"] if algorithm.mask_truncated else []),
            *([f"KL to the initial model, β {algorithm.kl_coefficient:g}"] if algorithm.kl_coefficient else []),
            *(["CONTROL: every advantage is zero"] if algorithm.zero_advantages else []),
            f"U {algorithm.updates_per_batch}, max_lag {lag.max_lag}",
            anchors[algorithm.old],
        )
    )


def _as_begun(ledger: Ledger, config: RunConfig, prepared: Prepared) -> Prepared:
    """The prompts as the run's first start wrote them: a template that writes the date writes that of then."""
    starts, rendered_at = ledger.starts(), ledger.meta("rendered_at")
    if rendered_at is None:
        # Releases that did not keep it began their runs when their first start says.
        began = datetime.fromisoformat(starts[0].began_at).astimezone() if starts else prepared.rendered_at
        rendered_at = began.replace(tzinfo=None).isoformat()
        ledger.set_meta("rendered_at", rendered_at)
    then = datetime.fromisoformat(rendered_at)
    if not prepared.prompts.encoded.tells_time or then == prepared.rendered_at:
        return prepared
    prompts = run_prompts(config.data, prepared.problems, prepared.tokenizer, then)
    asked = held_out(config, prepared.measured, prepared.tokenizer, prepared.model.num_embeddings, then)
    return replace(prepared, prompts=prompts, held_out=asked, rendered_at=then)


def sinks_of(config: RunConfig, ledger: Ledger) -> tuple[Sink, ...]:
    """Where the numbers of each step go; those of steps that this run, or `dcpo eval` in its folder, measures stay."""
    whole_steps, folder = config.training.whole_metrics_steps, RunFolder(config.folder)

    def measured() -> set[int]:
        return measured_steps(folder).union(row.step for row in evaluations(ledger))

    return (MetricsWriter(folder.path, Thinning(whole_steps, measured) if whole_steps else None),)


def _identify(ledger: Ledger, config: RunConfig, data_digest: str, model: str) -> str:
    """The run's id; a folder that holds another run's ledger is refused."""
    expect_meta(
        ledger,
        "data",
        data_digest,
        "train on the same problems, by the same tokenizer, template and arguments, or choose another --folder",
    )
    expect_meta(ledger, "model", model, "a run goes on with the model that it began with; choose another --folder")
    adapter = "none" if config.adapter.rank is None else config.adapter.model_dump_json()
    expect_meta(ledger, "adapter", adapter, "a run goes on with what it trains; choose another --folder")
    expect_meta(ledger, "seed", str(config.seed), "the prompt order depends on it; choose another --folder")
    expect_meta(ledger, "group_size", str(config.sampling.group_size), "choose another --folder")
    run_id = ledger.meta("run_id") or f"{config.folder.name}-{secrets.token_hex(4)}"
    ledger.set_meta("run_id", run_id)
    ledger.commit()
    return run_id


def _is_finished(ledger: Ledger, config: RunConfig) -> bool:
    """Whether the trainer has been to the end of the run, and its export is still there."""
    max_steps, trained = config.training.max_steps, int(ledger.meta("finished_step") or 0)
    return max_steps is not None and trained >= max_steps and RunFolder(config.folder).export.is_dir()
