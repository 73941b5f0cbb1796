"""Groups of metrics: trackers show one section for each. A metric's name is that of metrics.jsonl, everywhere. Pure."""

import re
from collections.abc import Mapping

GROUPS: Mapping[str, tuple[str, ...]] = {
    "reward": ("reward", "rur", "rur_later", "advantage_abs_mean", "total_rewards_.*", "total_regrade.*"),
    "policy": (
        "loss",
        "tcr.*",
        "dual_clip_rate",
        "ratio_.*",
        "ess_fraction",
        "kl_.*",
        "entropy",
        "nonfinite_tokens",
        "correction_.*",
    ),
    "update": ("grad_norm", "grad_clipped", "step_skipped", "learning_rate"),
    "lag": ("lag_.*", "mixed_versions"),
    "responses": (
        "groups",
        "responses",
        "response_.*",
        "truncated",
        "tokens",
        "num_tokens",
        "omitted_share",
        "visit_mean",
    ),
    "fleet": (
        "actors",
        "actor_tokens_per_second",
        "responses_in_flight",
        "response_capacity",
        "preemptions",
        "canary_.*",
        "groups_waiting",
        "groups_leased",
        "total_leases.*",
        "total_lease_failures",
    ),
    "progress": ("step", "seconds", "generated_.*", "prompts_quarantined", "total_.*"),
    "speed": (".*_seconds", "tokens_per_second", "model_tflops", "mfu"),
    "storage": (".*_bytes", "publish_skipped", "checkpoint_put_off", "checkpoint_failures"),
}
"""Patterns of names without what follows a slash. The first that fits counts, and a name itself before any pattern."""
OTHER = "other"
EVALUATION = "evaluation"


def group_of(name: str) -> str:
    """The group of a metric: `group_of("tcr")` is "policy", `group_of("reward/sums")` is "reward"."""
    base = name.partition("/")[0]
    for group, patterns in GROUPS.items():
        if base in patterns:
            return group
    for group, patterns in GROUPS.items():
        if any(re.fullmatch(pattern, base) for pattern in patterns):
            return group
    return OTHER


def grouped(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under their groups: `grouped({"tcr": 0.1})` is `{"policy/tcr": 0.1}`."""
    return {f"{group_of(name)}/{name}": value for name, value in metrics.items()}


def of_evaluation(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures of an evaluation in a group of their own, without what only says when it was written down."""
    return {f"{EVALUATION}/{name}": value for name, value in metrics.items() if name not in ("step", "seconds")}
