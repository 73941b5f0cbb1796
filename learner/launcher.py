"""`dcpo-learner`: checks what it was given, then runs coordinator, weight server and trainer until the run ends.

Torch and transformers take seconds to import: what can be refused without them is refused before.
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dcpo_async.config import ModelSettings, RunConfig, load_config
from dcpo_async.devices import checked_gpus, cuda_environment
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError, DcpoError, TrainerError, WeightsError
from dcpo_async.model_folder import load_tokenizer, model_folder
from dcpo_async.processes import kill_group, last_lines, module_argv, spawn, stop
from dcpo_async.prompts import LoadedProblems, encode_prompts
from dcpo_async.transport.security import load_server_keys
from dcpo_async.transport.zmq_channel import RouterChannel
from learner.problems import training_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from learner.coordinator.coordinator import Coordinator
    from learner.ledger.ledger import Ledger

log = logging.getLogger("learner")

MAX_RESTARTS_WITHOUT_PROGRESS = 3
TRAINER_ERROR = "trainer_error.json"
TRAINER_GRACE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Devices:
    """Where the trainer runs: on these GPUs, or as this many processes on the CPU."""

    gpus: tuple[int, ...]
    num_workers: int

    @property
    def dtype(self) -> str:
        """What `model.dtype = auto` means here."""
        return "bfloat16" if self.gpus else "float32"

    def environment(self) -> dict[str, str]:
        """Environment of the trainer ranks."""
        if self.gpus:
            return cuda_environment(self.gpus)
        # An actor usually shares the machine, so that the trainer takes half of the cores unless told otherwise.
        threads = max(1, (os.cpu_count() or 1) // (2 * self.num_workers))
        threads_word = os.environ.get("OMP_NUM_THREADS", str(threads))
        return {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads_word}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 when the run is finished or stopped, 2 on bad input, 1 on a failure."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        asyncio.run(_run(*parsed(argv)))
    except DcpoError as error:
        print(f"dcpo-learner: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def parsed(argv: Sequence[str] | None) -> tuple[RunConfig, Devices, argparse.Namespace]:
    """Settings, devices and the remaining options of a command line; raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="dcpo-learner",
        description="Train with DCPO on the groups that actors send in. A run folder that holds a run is resumed.",
        epilog="Any setting can be overridden by its dotted name, such as --training.learning_rate 1e-5.",
    )
    parser.add_argument("config", nargs="?", type=Path, help="TOML file; none is the paper's headline run")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", help="GPUs of the trainer, such as 4-7")
    where.add_argument("--workers", type=int, default=None, help="trainer processes on the CPU")
    parser.add_argument("--keys", type=Path, help="folder of the CURVE keys that `dcpo keygen` made")
    parser.add_argument("--insecure", action="store_true", help="listen off loopback without keys")
    options, overrides = parser.parse_known_args(_joined(sys.argv[1:] if argv is None else argv))
    config = load_config(options.config, overrides)
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: at least one process has to train")
    gpus = checked_gpus(options.gpus) if options.gpus else ()
    return config, Devices(gpus, len(gpus) or options.workers or 1), options


def _joined(words: Sequence[str]) -> list[str]:
    """Overrides as single words: argparse would take the value of `--a.b VALUE` for the configuration file."""
    joined: list[str] = []
    for word in words:
        if joined and _lacks_value(joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _lacks_value(word: str) -> bool:
    """Whether a word is the name of a setting; dotted ones that do not exist are refused later, by their name."""
    is_setting = "." in word or word.removeprefix("--") in RunConfig.model_fields
    return word.startswith("--") and "=" not in word and is_setting


async def _run(config: RunConfig, devices: Devices, options: argparse.Namespace) -> None:
    config = config.model_copy(update={"model": _resolved_model(config.model, devices)})
    problems = training_problems(config.data)
    keys = load_server_keys(options.keys) if options.keys else None
    limit = config.network.max_message_bytes
    actors = RouterChannel(config.network.listen, limit, curve=keys, insecure=options.insecure)
    sockets = Path(tempfile.mkdtemp(prefix="dcpo-"))
    trainer_address = f"ipc://{sockets}/trainer"
    trainer = RouterChannel(trainer_address, limit)
    try:
        coordinator = _make_coordinator(config, problems, actors, trainer)
        log.info("run %s in %s; actors reach it at %s", coordinator.run_id, config.folder, config.network.listen)
        log.info("algorithm: %s", described(config))
        if _is_finished(coordinator.intake.ledger, config):
            log.info("the run was finished before; raise training.max_steps to go on")
        else:
            await Launcher(config, devices, coordinator, trainer_address, options).run()
        coordinator.intake.ledger.close()
    finally:
        actors.close()
        trainer.close()
        shutil.rmtree(sockets, ignore_errors=True)


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
            f"{algorithm.loss_mean} {algorithm.otm_scale}",
            *(["dynamic sampling"] if algorithm.dynamic_sampling else []),
            *([f"{overlong} tokens of overlong shaping"] if (overlong := algorithm.overlong_buffer_tokens) else []),
            *(["truncated responses without weight"] if algorithm.mask_truncated else []),
            *(["CONTROL: every advantage is zero"] if algorithm.zero_advantages else []),
            f"U {algorithm.updates_per_batch}, max_lag {lag.max_lag}",
            anchors[algorithm.old],
        )
    )


def _make_coordinator(
    config: RunConfig, problems: LoadedProblems, actors: RouterChannel, trainer: RouterChannel
) -> "Coordinator":
    from learner.coordinator.coordinator import Coordinator
    from learner.coordinator.intake import Intake
    from learner.ledger.ledger import Ledger

    tokenizer = load_tokenizer(Path(config.model.path), "model.path")
    encoded = encode_prompts(
        problems.problems,
        tokenizer,
        system_prompt=config.data.system_prompt or None,
        template=config.data.prompt_template,
        max_prompt_tokens=config.data.max_prompt_tokens,
    )
    left_out = {**problems.left_out, "too long": encoded.num_too_long}
    reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.items() if count)
    log.info("%d prompts from %d rows; left out: %s", len(encoded.prompts), problems.num_rows, reasons or "none")
    config.folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(config.folder / "ledger")
    run_id = _identify(ledger, config, encoded.digest)
    intake = Intake(config, encoded.prompts, _vocab_size(config.model.path, tokenizer), ledger)
    coordinator = Coordinator(
        config, run_id, intake, actors, trainer, weights_port=actors.port + 1, dtype=config.model.dtype
    )
    (config.folder / "config.json").write_text(config.model_dump_json(indent=2))
    counts = {"rows": problems.num_rows, "prompts": len(encoded.prompts), "left_out": left_out}
    write_json(config.folder / "data.json", counts)
    return coordinator


def _identify(ledger: "Ledger", config: RunConfig, data_digest: str) -> str:
    """The run's id; a folder that holds another run's ledger is refused."""
    ledger.expect_meta("data", data_digest, "train on the same problems, or choose another --folder")
    ledger.expect_meta("seed", str(config.seed), "the prompt order depends on it; choose another --folder")
    ledger.expect_meta("group_size", str(config.sampling.group_size), "choose another --folder")
    run_id = ledger.meta("run_id") or f"{config.folder.name}-{secrets.token_hex(4)}"
    ledger.set_meta("run_id", run_id)
    ledger.commit()
    return run_id


def _is_finished(ledger: "Ledger", config: RunConfig) -> bool:
    """Whether the trainer has been to the end of the run, and its export is still there."""
    max_steps, trained = config.training.max_steps, int(ledger.meta("finished_step") or 0)
    return max_steps is not None and trained >= max_steps and (config.folder / "export").is_dir()


def _resolved_model(model: ModelSettings, devices: Devices) -> ModelSettings:
    """The model as a local folder, with its type decided."""
    dtype = devices.dtype if model.dtype == "auto" else model.dtype
    folder = model_folder(model.path, "model.path")
    return model.model_copy(update={"path": str(folder), "dtype": dtype})


def _vocab_size(folder: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Token ids that an engine can sample: embeddings are often padded beyond the tokenizer's vocabulary."""
    padded = json.loads((Path(folder) / "config.json").read_text()).get("vocab_size", 0)
    return max(int(padded), len(tokenizer))


class Launcher:
    """Supervises the parts of the learner: a part that dies is started again, with a bound."""

    def __init__(
        self,
        config: RunConfig,
        devices: Devices,
        coordinator: "Coordinator",
        trainer_address: str,
        options: argparse.Namespace,
    ) -> None:
        self._config, self._devices, self._coordinator = config, devices, coordinator
        self._trainer_address, self._options = trainer_address, options
        self._logs = config.folder / "logs"
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run all parts until the run is finished, a signal comes, or a part fails for good."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        parts = [
            asyncio.create_task(self._coordinator.run(), name="coordinator"),
            asyncio.create_task(self._keep_weight_server(), name="weight server"),
            asyncio.create_task(self._keep_trainer(), name="trainer"),
            asyncio.create_task(self._stopping.wait(), name="signal"),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
            is_finished = self._coordinator.training.is_finished
            log.info("the run is finished" if is_finished else "stopped; the same command goes on from here")
            await self._coordinator.end("the run is finished" if is_finished else "the learner stops")
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    # ---- weight server

    async def _keep_weight_server(self) -> None:
        listen = self._config.network.listen.rpartition(":")[0]
        coordinator = self._coordinator
        argv = module_argv("learner.weights.server")
        argv += [
            "--listen",
            f"{listen}:{coordinator.weights_port}",
            "--store",
            str(self._config.folder / "weights"),
        ]
        argv += ["--run-id", coordinator.run_id, "--incarnation", str(coordinator.intake.ledger.incarnation)]
        argv += ["--keys", str(self._options.keys)] if self._options.keys else []
        argv += ["--insecure"] if self._options.insecure else []
        log_file, failures = self._logs / "weight_server.log", 0
        while True:
            started = asyncio.get_running_loop().time()
            code = await self._watched(argv, log_file, {}, grace_seconds=5)
            failures = failures + 1 if asyncio.get_running_loop().time() - started < 60 else 1
            if code == ConfigError.exit_code:
                raise ConfigError(last_lines(log_file, 1).removeprefix("dcpo-learner: "))
            if failures > MAX_RESTARTS_WITHOUT_PROGRESS:
                raise WeightsError(f"the weight server ended {failures} times in a row; see {log_file}")
            log.warning("the weight server ended with code %d and is started again", code)

    # ---- trainer

    async def _keep_trainer(self) -> None:
        training, log_file = self._coordinator.training, self._logs / "trainer.log"
        failures, best_step = 0, 0
        while True:
            (self._config.folder / TRAINER_ERROR).unlink(missing_ok=True)
            code = await self._watched(
                self._trainer_argv(), log_file, self._devices.environment(), TRAINER_GRACE_SECONDS
            )
            if code == 0:
                training.is_finished = True
                self._coordinator.intake.ledger.set_meta("finished_step", str(training.step))
                return
            reason = self._trainer_error()
            failures = 1 if training.step > best_step else failures + 1
            best_step = max(best_step, training.step)
            if failures > MAX_RESTARTS_WITHOUT_PROGRESS:
                raise TrainerError(
                    f"the trainer failed {failures} times without a step in between: {reason or 'see the log'}; "
                    f"all of it is in {log_file}"
                )
            training.restarts += 1
            training.waiting.clear()
            log.warning(
                "the trainer ended with code %d after step %d%s; it starts again from its newest checkpoint, "
                "actors keep generating",
                code,
                training.step,
                f" ({reason})" if reason else "",
            )

    def _trainer_error(self) -> str:
        """What the rank that failed first said, since torchrun keeps it to itself; raises what no restart can mend."""
        path = self._config.folder / TRAINER_ERROR
        if not path.exists():
            return ""
        error = json.loads(path.read_text())
        if error["exit_code"] == ConfigError.exit_code:
            raise ConfigError(error["message"])
        return str(error["message"])

    def _trainer_argv(self) -> list[str]:
        argv = module_argv("torch.distributed.run", "--standalone", "--max-restarts", "0")
        argv += ["--nproc-per-node", str(self._devices.num_workers), "-m", "learner.trainer.trainer"]
        argv += ["--config", str(self._config.folder / "config.json")]
        argv += ["--coordinator", self._trainer_address, "--run-id", self._coordinator.run_id]
        return argv

    async def _watched(
        self, argv: Sequence[str], log_file: Path, environment: dict[str, str], grace_seconds: float
    ) -> int:
        """Run a child to its end; when this task is cancelled, end the child too."""
        process = await spawn(argv, log_file, environment)
        try:
            code = await process.wait()
            kill_group(process)
            return code
        except asyncio.CancelledError:
            await stop(process, grace_seconds)
            raise


if __name__ == "__main__":
    main()
