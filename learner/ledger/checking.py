"""Reads a whole ledger before a learner goes on in it: every page, every row, and the statistics once more."""

from collections.abc import Collection
from functools import lru_cache

from dcpo_async.algorithm.reward_stats import to_nano
from learner.ledger.reader import LedgerReader
from learner.ledger.rows import Rows, damaged
from learner.ledger.schema import BEGAN_IN_MILLIONTHS, GROUPS, META, OLD_LOGPROBS, PROMPT_STATS, TABLES
from learner.ledger.segments import Place


def check(rows: Rows, acknowledged: int | None) -> None:
    """Check a ledger whose tables are prepared.

    Args:
        acknowledged: commits that it must have at least; None where that is not known.

    Raises:
        LedgerError: it is damaged, or ends before what was acknowledged.
    """
    if acknowledged is not None and rows.commits < acknowledged:
        raise damaged(
            rows.path,
            f"it ends with commit {rows.commits}, though commit {acknowledged} was acknowledged: its log "
            f"({rows.path.name}-wal) is damaged or missing, or an older copy was put back; where that is meant, delete "
            "ledger.commits to go on without what came after",
        )
    rows.check_totals(list(TABLES.values()))
    check_statistics(rows)


def check_pages(rows: Rows) -> None:
    """Let SQLite look through all pages and indices; raises LedgerError where it finds anything wrong."""
    found = [str(message) for (message,) in rows.query("PRAGMA integrity_check(1)")]
    if found != ["ok"]:
        raise damaged(rows.path, f"SQLite says {' '.join(' '.join(found).split())}")


def check_statistics(rows: Rows) -> None:
    """Recount every prompt's statistics from the rewards of its groups; raises LedgerError where they differ.

    Statistics that began in millionths rounded their rewards otherwise, and are left alone.
    """
    if rows.find(META, "WHERE key = ?", (BEGAN_IN_MILLIONTHS,)):
        return
    recounted: dict[str, list[int]] = {}
    for prompt_id, rewards in rows.each("SELECT prompt_id, rewards FROM groups JOIN visits USING (position)"):
        sums = recounted.setdefault(prompt_id, [0, 0, 0, 0])
        for index, more in enumerate((1, *_sums(rewards))):
            sums[index] += more
    stored = {
        prompt_id: [visits, count, sum_nano, int(sum_sq_nano)]
        for prompt_id, visits, count, sum_nano, sum_sq_nano in rows.find(PROMPT_STATS)
    }
    for prompt_id in sorted(recounted.keys() | stored.keys()):
        if stored.get(prompt_id) != recounted.get(prompt_id):
            raise damaged(
                rows.path,
                f"table prompt_stats, prompt_id {prompt_id}: visits, count, sum and squares are "
                f"{stored.get(prompt_id)}, its groups say {recounted.get(prompt_id)}",
            )


def check_records(reader: LedgerReader, segments: Collection[int]) -> int:
    """Read every record of these segments; returns how many, and raises LedgerError where one is not as it was."""
    places = [
        Place(*row[start : start + 4])
        for table, start in ((GROUPS, 1), (OLD_LOGPROBS, 2))
        for row in reader._rows.each(f"SELECT * FROM {table.name}")
        if row[start] in segments
    ]
    for place in places:
        reader._segments.read(place)
    return len(places)


@lru_cache(maxsize=1 << 16)
def _sums(rewards: str) -> tuple[int, int, int]:
    """Count, Σr and Σr² of a group's rewards, which many groups share."""
    nanos = [to_nano(float(reward)) for reward in rewards.split()]
    return len(nanos), sum(nanos), sum(nano * nano for nano in nanos)
