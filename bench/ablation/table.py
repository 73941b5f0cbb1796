"""The table of an ablation, as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.ablation.runs import Plan
from dcpo_async.comparison.figures import across_runs, written
from dcpo_async.comparison.runs import ComparedRun, Cost, read_run
from dcpo_async.comparison.summary import Accuracy, Row, compared
from dcpo_async.run_folder import RunFolder
from learner.ledger.copy import open_copy

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
    first = comparison.rows[0]
    names = [name.format(step=accuracy.step, responses=accuracy.responses) for name in HEADER]
    summary = _markdown(names, [_cells(row, first, accuracy) for row in comparison.rows])
    steps = range(plan.every, plan.steps + 1, plan.every)
    by_step = _markdown(
        ["accuracy, %; below the first arm, against it", *(f"step {step}" for step in steps)],
        [[row.name, *(_against(row, first, accuracy, "steps", step) for step in steps)] for row in comparison.rows],
    )
    return f"{summary}\n\n{by_step}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def _cells(row: Row, first: Row, accuracy: Accuracy) -> list[str]:
    assert accuracy.responses is not None
    later = [found for run in row.runs if (found := later_advantages(run))]
    return [
        row.name,
        written(row.at_equal_steps, scale=100),
        "–" if row is first else _against(row, first, accuracy, "steps", accuracy.step),
        written(row.at_equal_responses, scale=100),
        "–" if row is first else _against(row, first, accuracy, "responses", accuracy.responses),
        written(row.metrics["rur"], scale=100),
        written(row.metrics["rur_later"], scale=100),
        written(across_runs([found.mean for found in later]) if later else None, ".3f"),
        written(across_runs([found.share_of_equal for found in later]) if later else None, scale=100),
        written(row.metrics["tcr"], ".3f", 100),
        written(row.responses_per_step, ".0f"),
        written(row.metrics["lag_mean"], ".2f"),
        written(across_runs([fmean(line["ess_fraction"] for line in run.metrics) for run in row.runs]), scale=100),
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


def later_advantages(run: ComparedRun) -> LaterAdvantages | None:
    """From the ledger of a run, without what dynamic sampling discarded; None where no advantage is above 0."""
    with open_copy(RunFolder(run.folder).ledger) as reader:
        scores = [reader.read_scores(row.position) for row in reader.visits("accepted") if row.visit > 1]
    groups = [(len(set(rewards)) == 1, [abs(value) for value in values]) for rewards, values in filter(None, scores)]
    total = sum(sum(sizes) for _, sizes in groups)
    if total == 0:
        return None
    of_equal = sum(sum(sizes) for is_equal, sizes in groups if is_equal)
    return LaterAdvantages(fmean(size for _, sizes in groups for size in sizes), of_equal / total)


def _against(row: Row, first: Row, accuracy: Accuracy, cost: Cost, x: float) -> str:
    """The accuracy of the first arm, and what another one has more or less, paired by seed."""
    if row is first:
        return written(across_runs(list(_by_seed(row.runs, accuracy, cost, x).values())), scale=100)
    own, other = (_by_seed(each.runs, accuracy, cost, x) for each in (row, first))
    return written(across_runs([own[seed] - other[seed] for seed in own.keys() & other.keys()]), "+.1f", 100)


def _by_seed(runs: Sequence[ComparedRun], accuracy: Accuracy, cost: Cost, x: float) -> dict[int, float]:
    found = {run.config.seed: run.accuracy(accuracy.set, accuracy.mode, cost).at(x) for run in runs}
    return {seed: value.mean for seed, value in found.items() if value is not None}
