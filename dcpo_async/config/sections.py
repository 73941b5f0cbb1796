"""The tables of a configuration file: frozen pydantic models with their bounds."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dcpo_async.limits import MAX_GROUP_SIZE, MAX_GROUPS_IN_FLIGHT, MAX_MESSAGE_BYTES, MAX_REWARD, ChunkBytes

Positive = Annotated[int, Field(gt=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
Reward = Annotated[float, Field(ge=-MAX_REWARD, le=MAX_REWARD)]
Probability = Annotated[float, Field(gt=0, lt=1)]
_NAME = "[A-Za-z_][A-Za-z0-9_]*"
FunctionName = Annotated[str, Field(max_length=200, pattern=rf"^{_NAME}(\.{_NAME})*:{_NAME}$")]
SourceDigest = Annotated[str, Field(pattern="^([0-9a-f]{16})?$")]
Extraction = Literal["boxed", "answer", "last_number", "last_math"]
SinkName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Word = Annotated[str, Field(min_length=1, max_length=120)]


_OF_THE_RUN = {
    "train_batch_size": "training.groups_per_step and sampling.group_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_tokens",
    "gradient_accumulation_steps": "training.micro_batch_tokens, of which a step has as many as it needs,",
    "managed_gradient_accumulation": "training.micro_batch_tokens, of which a step has as many as it needs,",
    "gradient_clipping": "training.gradient_clip",
    "gradient_allreduce_op": "nothing: gradients are summed over ranks,",
    "optimizer": "training.learning_rate, training.betas and training.weight_decay",
    "scheduler": "training.schedule",
    "fp16": "model.dtype",
    "bf16.enabled": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types.param_dtype": "model.dtype",
    "activation_checkpointing": "model.gradient_checkpointing",
    "zero_optimization.stage": "training.zero_stage",
    "sequence_parallel_size": "training.sequence_parallel",
    "data_parallel_size": "training.sequence_parallel",
    "tensor_parallel": "training.zero_stage or training.sequence_parallel",
}
"""DeepSpeed's options that would contradict what the run does by settings of its own, or be passed over in silence."""


class Section(BaseModel):
    """A table of the TOML file; unknown keys are errors at every level."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelSettings(Section):
    """The model that is trained."""

    path: str = "Qwen/Qwen2.5-Math-7B"
    """Folder or hub id of a Hugging Face causal language model with its tokenizer."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the forward pass and of published weights; auto is bfloat16 on GPUs and float32 on a CPU."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, about a quarter more compute. auto does so unless a
    trainer on one machine that keeps them is estimated to take at most half of the GPU, or of the free memory where it
    has none."""


class SamplingSettings(Section):
    """How actors sample responses: by temperature alone, so that learner and engine share one distribution."""

    group_size: Annotated[int, Field(ge=2, le=MAX_GROUP_SIZE)] = 16
    """G, responses for each prompt visit."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature; the learner divides its logits by it too."""
    max_response_tokens: Positive = 3072
    """A response that reaches this length is truncated and graded as it stands."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=64)] = ()
    """Texts that end a response, such as "</answer>"; its tokens, that of the end among them, train as they are."""
    stop_token_ids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=64)] = ()
    """Tokens that end a response beside the end tokens of the model."""


class GradingSettings(Section):
    """How responses become rewards: 1 for a correct answer, else 0; or what a function of yours says."""

    reward: FunctionName | None = None
    """package.module:function, an own reward (docs/rewards.md) instead of the built-in grader; learner and actors
    import the same source."""
    reward_range: tuple[Reward, Reward] = (0.0, 1.0)
    """Lowest and highest reward that grading.reward can give, 0 among them; groups with others are refused."""
    reward_repeats: bool = True
    """Whether grading.reward always gives the same for the same; one that does not is not graded again by sample."""
    reward_digest: SourceDigest = ""
    """Of the source of grading.reward; the learner works it out at each start, and refuses another where one is given.
    """

    extraction: Extraction = "answer"
    """The answer: the last \\boxed{}; also what a marker announces; also the last number, or mathematics."""
    format_penalty: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Subtracted from the reward of a response in which no answer was found."""
    timeout_seconds: PositiveSeconds = 5.0
    """A grading worker that takes longer over one answer is killed and the answer counts as wrong."""
    workers: Positive = 2
    """Grading processes of each engine process."""


class AlgorithmSettings(Section):
    """DCPO (arXiv 2509.02333); GRPO, DAPO and GSPO are other choices of the same parts."""

    advantage: Literal["smooth", "group", "centered", "leave_one_out"] = "smooth"
    """Rewards are judged against all visits of the prompt (smooth), or against those of their own group alone: as
    (R - μ)/σ (group), as R - μ (centered, Dr. GRPO), or as R less the mean of the others (leave_one_out, RLOO)."""
    half_life_visits: Annotated[float, Field(gt=0)] | None = None
    """h: an earlier visit weighs 2^(-1/h) for each visit since, for policies that move far; none weighs all alike."""
    clip: Literal["dynamic", "fixed"] = "dynamic"
    """Clip bounds widen as the old probability falls (dynamic), or are 1 - ε_low and 1 + ε_high for every token."""
    ratio: Literal["token", "sequence"] = "token"
    """The ratio is each token's own, or that of its whole response (GSPO), which needs clip = fixed."""
    loss: Literal["clipped", "weighted"] = "clipped"
    """A token beyond its bound has no gradient (clipped), or learns by the bound as a constant weight of its log-prob
    (weighted, CISPO)."""
    loss_mean: Literal["response", "token", "constant"] = "response"
    """The loss is averaged over each response's own tokens first, over all tokens of the step at once (DAPO), or
    divided by sampling.max_response_tokens whatever the lengths (constant, Dr. GRPO)."""
    epsilon_low: Annotated[float, Field(gt=0)] = 0.16
    """ε_low of the lower clip bound."""
    epsilon_high: Annotated[float, Field(gt=0)] = 0.20
    """ε_high of the upper clip bound."""
    max_ratio: Annotated[float, Field(gt=1)] = 10.0
    """r_max: cap of the upper bound, and of the loss where the advantage is negative."""
    ddof: Annotated[int, Field(ge=0, le=1)] = 1
    """Delta degrees of freedom of every standard deviation of rewards."""
    otm_scale: Literal["mean", "sum"] = "mean"
    """mean divides a group's responses by G, sum does not; they differ in scale alone."""
    updates_per_batch: Positive = 1
    """U, optimizer steps taken on one batch of U·B groups."""
    old: Literal["behavior", "proximal"] = "behavior"
    """Which log-probs anchor ratio and clip bounds: the engine's, or the learner's at the start of the batch."""
    correction: Literal["none", "truncated", "masked"] = "truncated"
    """With old = proximal, what π_old/π_behavior does to a token's loss: nothing, multiply it up to importance_cap, or
    multiply it within importance_mask and drop the token outside. With old = behavior the ratio itself corrects."""
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    """C of correction = truncated (TIS, published with 2)."""
    importance_mask: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] = (0.5, 5.0)
    """Lowest and highest π_old/π_behavior of correction = masked (IcePop, arXiv 2510.18855: 0.5 and 5)."""
    dynamic_sampling: bool = False
    """Groups whose responses all have the same reward are discarded; other visits take their place (DAPO)."""
    overlong_buffer_tokens: Annotated[int, Field(ge=0)] = 0
    """A response loses reward, up to 1, over the last so many tokens before max_response_tokens (DAPO); 0 for none."""
    mask_truncated: bool = False
    """Give responses that were cut at max_response_tokens no weight in the loss."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """β of a KL term to the model that the run begins with (arXiv 2402.03300); above 0 every response is computed, and
    each rank holds that model too."""
    zero_advantages: bool = False
    """Control experiment: everything runs, but every advantage is zero."""


class TrainingSettings(Section):
    """Optimization."""

    groups_per_step: Positive = 64
    """B, groups in one optimizer step."""
    max_steps: Positive | None = None
    """The run ends after this many optimizer steps; none trains on and on."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """Peak learning rate of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up the rate stays, or falls to final_rate_share of its peak until schedule_steps."""
    schedule_steps: Positive | None = None
    """Optimizer step at which a falling rate has come to its end, and where it stays; none is max_steps."""
    final_rate_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of learning_rate at the end of a falling schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global gradient norm."""
    micro_batch_tokens: Positive | Literal["auto"] = "auto"
    """Prompt and response tokens in one forward pass of a rank; a longer sample goes alone. auto is 16384, 1024 on a
    CPU."""
    sequence_parallel: Positive = 1
    """Ranks that share the tokens of a micro-batch, which may then have so many times micro_batch_tokens: for responses
    of which one rank cannot hold the activations. Divides the ranks and the model's attention heads."""
    measured_share: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Responses of advantage 0 have no gradient and are not computed; this share of them is looked at for metrics."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | Literal["auto"] = "auto"
    """DeepSpeed ZeRO stage. auto is 2, and 0 for a single process on a CPU in float32 without ZeRO options of its own,
    which has none to share with and no use for master weights; a run keeps to what its checkpoints are, with ZeRO or
    without."""
    deepspeed: dict[str, Any] = {}
    """Any DeepSpeed option for which there is no setting here; merged over the ones that dcpo-async sets."""
    profile: Annotated[str, Field(pattern=r"^[1-9]\d*(:[1-9]\d*)?$")] | None = None
    """STEP or STEP:STEP, both among them: each rank writes a trace of these steps into FOLDER/timing, and on a GPU a
    snapshot of its memory; the steps themselves are slower."""
    step_timeout_seconds: PositiveSeconds = 1800.0
    """A rank that takes longer over one optimizer step or collective is reported and restarted."""
    whole_metrics_steps: Annotated[int, Field(ge=0)] = 10_000
    """metrics.jsonl and TensorBoard keep each of the newest so many steps, of older ones every second, fourth, eighth,
    the older the fewer, and those that were measured; 0 keeps them all, about 5 KB a step."""

    @field_validator("deepspeed")
    @classmethod
    def _without_what_the_run_decides(cls, given: dict[str, Any]) -> dict[str, Any]:
        for option, setting in _OF_THE_RUN.items():
            table, _, key = option.rpartition(".")
            options = given.get(table) if table else given
            if isinstance(options, Mapping) and key in options:
                raise ValueError(f"{option} is not for this table; set {setting} instead")
        return given


class CheckpointSettings(Section):
    """What survives a crash of the trainer."""

    interval_steps: Positive | None = 10
    """Steps between checkpoints; none where interval_minutes is given and this is not."""
    interval_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes between checkpoints, looked at after each batch; beside interval_steps, whichever comes first counts."""
    keep_last: Positive = 2
    """Newest checkpoints that are kept."""
    keep_every_steps: Positive | None = None
    """Checkpoints at multiples of this step are kept for good; needs interval_steps."""
    stop_seconds: Annotated[float, Field(ge=0)] = 300.0
    """A learner that is stopped (SIGTERM, Ctrl-C) ends its batch and writes a checkpoint for so long at most; a second
    signal ends it at once. 0 writes none."""

    @model_validator(mode="before")
    @classmethod
    def _by_the_clock_alone(cls, given: Any) -> Any:
        """A user who gives minutes has not asked for a checkpoint after every ten steps."""
        if isinstance(given, Mapping) and given.get("interval_minutes") is not None:
            return {"interval_steps": None, **given}
        return given


class LagSettings(Section):
    """How far actors may be behind the learner, in optimizer steps."""

    max_lag: Annotated[int, Field(ge=0)] = 4
    """No token is trained in a batch that starts more than this many optimizer steps after the weights that sampled
    it, so that only multiples of updates_per_batch make a difference; 0 is synchronous. Raise it for as long as actors
    wait and `kl_behavior` stays well below 0.3 nats, or 0.1 with `algorithm.old = "proximal"`: with the default anchor
    32 did no harm that three seeds could show."""
    publish_interval: Positive = 1
    """Steps between published weights versions."""
    keep_versions: Annotated[int, Field(ge=2)] = 3
    """Published versions that stay on disk for actors that are still fetching them."""


class WeightsSettings(Section):
    """How published weights prove that they are in an engine."""

    canary_tokens: Annotated[int, Field(ge=64, le=4096)] = 64
    """Length of the token sequence that trainer and engines score under each version; engines do so while paused."""
    canary_bound: Annotated[float, Field(gt=0)] | None = None
    """An engine refuses a version when its log-prob of one of these tokens differs from the trainer's by more nats;
    none is 1e-3 in float32 and 1 in bfloat16, where rounding alone has made
    4e-5 and 0.4."""


class ActorSettings(Section):
    """What the learner tells every actor that joins."""

    groups_in_flight: Annotated[int, Field(gt=0, le=MAX_GROUPS_IN_FLIGHT)] = 64
    """An engine process has at most this many groups' worth of responses in flight, fewer where its KV cache has been
    seen to hold fewer. A response that has ended makes room, whatever the others of its group do, so that up to four
    times as many groups may be open."""
    kv_after_update: Literal["keep", "recompute"] = "keep"
    """After new weights: keep the KV cache of responses in flight, or recompute it."""
    engine_stall_seconds: PositiveSeconds = 30.0
    """An engine that takes no step for so long, with work in it and no new weights on the way in, is ended and started
    anew; on a CPU processor time counts as a step."""
    stall_seconds: PositiveSeconds = 120.0
    """A lease goes back when no token of any of its holder's leases has come for so long; five times as long where that
    one says that it starts, waits for weights or grades. It gets no lease for as long, twice as long each time."""
    max_failures: Positive = 3
    """A prompt that fails on so many hosts, or as often where there are fewer, is quarantined, counted and reported."""
    regrade_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of responses that the learner grades again to measure disagreement."""


class NetworkSettings(Section):
    """Addresses and deadlines."""

    listen: str = "tcp://127.0.0.1:5557"
    """Where actors reach the coordinator; the weight server takes the next port."""
    heartbeat_seconds: PositiveSeconds = 3.0
    """Actors send a heartbeat this often."""
    silence_seconds: PositiveSeconds = 15.0
    """A session silent for this long is lost, and its leases are issued again."""
    max_message_bytes: Annotated[int, Field(gt=0, le=MAX_MESSAGE_BYTES)] = 1 << 30
    """Larger messages are refused; the largest group and shard must fit."""
    chunk_bytes: ChunkBytes = 4 << 20
    """An actor has eight times as many bytes of weights asked for and not yet received; a request is for 4 MiB."""


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, table by table; where both speak, above."""
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


class TrackingSettings(Section):
    """Where the metrics go beside metrics.jsonl (docs/tracking.md)."""

    sinks: tuple[SinkName, ...] = ("tensorboard",)
    """tensorboard, wandb, mlflow, trackio, or none of them; each has a process of its own, whose failures the training
    does not feel."""
    project: Word = "dcpo-async"
    """Project of W&B and trackio, experiment of MLflow."""
    name: Annotated[str, Field(max_length=120)] = ""
    """What the run is called there; empty is the name of its folder."""
    group: Annotated[str, Field(max_length=120)] = ""
    """Runs that belong together, such as seeds of one configuration."""
    tags: Annotated[tuple[Word, ...], Field(max_length=32)] = ()
    """Words to find the run by, of W&B and MLflow."""
    mode: Literal["online", "offline"] = "online"
    """offline keeps everything in the run folder's `tracking`; online sends it where the sink's own environment
    variables say."""

    @field_validator("sinks")
    @classmethod
    def _once_each(cls, sinks: tuple[SinkName, ...]) -> tuple[SinkName, ...]:
        if len(set(sinks)) < len(sinks):
            raise ValueError("names a sink twice")
        return sinks
