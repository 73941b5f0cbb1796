"""The public surface for programs and notebooks: these names and what they return keep working between releases.

    from dcpo_async.api import algorithm, grade, load_config, read_run

    run = read_run("runs/demo/run")
    run.metrics.to_pandas().plot("step", "reward")
    grade(r"so \\boxed{1/2}", "0.5").correct
    load_config("grpo", ["--training.learning_rate", "1e-5"]).training.learning_rate

Every other module of these packages may change with any release. Command lines, `--json` outputs and the files of a run
folder are described in docs/operations.md.
"""

from dcpo_async import algorithm
from dcpo_async.api.runs import Run, read_run
from dcpo_async.config import RunConfig
from dcpo_async.config.loading import load_config
from dcpo_async.errors import DcpoError
from dcpo_async.grading import Verdict, grade

__all__ = ["DcpoError", "Run", "RunConfig", "Verdict", "algorithm", "grade", "load_config", "read_run"]
