"""`dcpo stats`: the statistics of every prompt of a run as tables, and its pass rates over time as a plot."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import DcpoError
from dcpo_async.run_folder import RunFolder
from learner.ledger.copy import open_copy
from learner.reports.prompt_rows import read_statistics


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input."""
    parser = argparse.ArgumentParser(prog="dcpo stats", description="Statistics of every prompt of a run.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, help="folder for tables and plot (default RUN/stats)")
    options = parser.parse_args(argv)
    try:
        with open_copy(RunFolder(options.run).ledger, is_checked=True) as reader:
            statistics = read_statistics(reader)
        # Arrow and matplotlib take a second, which a look at the options or a run without groups must not cost.
        from learner.reports.stats_files import export

        print(export(statistics, options.out or RunFolder(options.run).stats))
    except DcpoError as error:
        print(f"dcpo stats: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
