"""The table of an ablation, as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.ablation.runs import Plan
from dcpo_async.comparison.figures import Measured, across_runs
from dcpo_async.comparison.runs import ComparedRun, Cost, read_run
from dcpo_async.comparison.summary import Accuracy, Row, compared
from learner.ledger_copy import open_copy

HEADER = (
    "arm",
    "accuracy at step {step:.0f}, %",
    "against the first arm",
    "accuracy after {responses:.0f} responses, %",
    "against the first arm",
    "RUR, %",
    "RUR of later visits, %",
    "mean \\|Â\\|, later",
    "of it from equal rewards, %",
    "TCR, %",
    "responses a step",
    "lag",
    "effective sample size, %",
)


def table(plan: Plan) -> str:
    """What was measured of every arm: means over seeds with Student's 95 % interval.

    Differences to the first arm are paired by seed, which shares its warm start, its problems and their order.
    """
    runs = [
        read_run(arm.name, plan.folder(arm, seed), [plan.evaluation(seed)]) for arm in plan.arms for seed in plan.seeds
    ]
    comparison = compared(runs)
    accuracy = comparison.accuracy
    assert accuracy is not None
    assert accuracy.responses is not None
    names = [name.format(step=accuracy.step, responses=accuracy.responses) for name in HEADER]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    first = comparison.rows[0]
    for row in comparison.rows:
        lines.append("| " + " | ".join(_cells(row, first, accuracy)) + " |")
    return "\n".join(lines)


def _cells(row: Row, first: Row, accuracy: Accuracy) -> list[str]:
    assert accuracy.responses is not None
    later = [later_advantages(run) for run in row.runs]
    return [
        row.name,
        _percent(row.at_equal_steps),
        _against(row, first, accuracy, "steps", accuracy.step),
        _percent(row.at_equal_responses),
        _against(row, first, accuracy, "responses", accuracy.responses),
        _percent(row.metrics["rur"]),
        _percent(row.metrics["rur_later"]),
        _plain(across_runs([advantages.mean for advantages in later]), ".3f"),
        _percent(across_runs([advantages.share_of_equal for advantages in later])),
        _percent(row.metrics["tcr"], ".3f"),
        _plain(row.responses_per_step, ".0f"),
        _plain(row.metrics["lag_mean"], ".2f"),
        _percent(across_runs([fmean(line["ess_fraction"] for line in run.metrics) for run in row.runs])),
    ]


@dataclass(frozen=True, slots=True)
class LaterAdvantages:
    """Sizes of the advantages of a run's second and later visits.

    Attributes:
        mean: |Â|, over all their responses.
        share_of_equal: what groups whose rewards are all equal have of Σ|Â|.
    """

    mean: float
    share_of_equal: float


def later_advantages(run: ComparedRun) -> LaterAdvantages:
    """From the ledger of a run; groups that dynamic sampling discarded were never trained and do not count."""
    with open_copy(run.folder / "ledger") as reader:
        scores = [reader.read_scores(row.position) for row in reader.visits("state = 'accepted' AND visit > 1")]
    groups = [(len(set(rewards)) == 1, [abs(value) for value in values]) for rewards, values in filter(None, scores)]
    total = sum(sum(sizes) for _, sizes in groups)
    of_equal = sum(sum(sizes) for is_equal, sizes in groups if is_equal)
    return LaterAdvantages(fmean(size for _, sizes in groups for size in sizes), of_equal / total)


def _against(row: Row, first: Row, accuracy: Accuracy, cost: Cost, x: float) -> str:
    if row is first:
        return "–"
    own, other = (_by_seed(each.runs, accuracy, cost, x) for each in (row, first))
    return _percent(across_runs([own[seed] - other[seed] for seed in own.keys() & other.keys()]), "+.1f")


def _by_seed(runs: Sequence[ComparedRun], accuracy: Accuracy, cost: Cost, x: float) -> dict[int, float]:
    found = {run.config.seed: run.accuracy(accuracy.set, accuracy.mode, cost).at(x) for run in runs}
    return {seed: value.mean for seed, value in found.items() if value is not None}


def _percent(value: Measured | None, form: str = ".1f") -> str:
    if value is None:
        return "–"
    bounds = [None if bound is None else 100 * bound for bound in (value.low, value.high)]
    return _plain(Measured(100 * value.mean, *bounds), form)


def _plain(value: Measured | None, form: str) -> str:
    if value is None:
        return "–"
    if value.low is None or value.high is None:
        return format(value.mean, form)
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"
