"""Two machines of two ranks each, as threads that hear each other's texts."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from dcpo_async.errors import CheckpointError
from learner.checkpoints.folder import step_folder
from learner.checkpoints.places import LocatedRanks, folder_of, newest_step

T = TypeVar("T")
NUM_RANKS, NUM_LOCAL = 4, 2


class Talk:
    """What ranks say to each other, once all have said it."""

    def __init__(self) -> None:
        self.texts, self.barrier = [""] * NUM_RANKS, threading.Barrier(NUM_RANKS, timeout=30)


class ThreadRank:
    def __init__(self, rank: int, talk: Talk) -> None:
        self.rank, self.num_ranks, self.num_local, self.local_rank = rank, NUM_RANKS, NUM_LOCAL, rank % NUM_LOCAL
        self._talk = talk

    def texts_of_ranks(self, text: str) -> list[str]:
        self._talk.texts[self.rank] = text
        self._talk.barrier.wait()
        texts = list(self._talk.texts)
        self._talk.barrier.wait()
        return texts


def by_rank(work: Callable[[LocatedRanks], T]) -> list[T]:
    talk = Talk()
    with ThreadPoolExecutor(NUM_RANKS) as threads:
        return list(threads.map(work, [ThreadRank(rank, talk) for rank in range(NUM_RANKS)]))


def folders(tmp_path: Path) -> list[Path]:
    """Of each rank, on a disk of its machine."""
    return [tmp_path / f"machine-{rank // NUM_LOCAL}" / "checkpoints" for rank in range(NUM_RANKS)]


def test_one_rank_sees_to_a_folder_that_all_share(tmp_path: Path) -> None:
    found = by_rank(lambda ranks: folder_of(tmp_path / "checkpoints", ranks))
    assert found == [(True, True), (False, True), (False, True), (False, True)]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_each_machine_sees_to_a_folder_of_its_own(tmp_path: Path) -> None:
    found = by_rank(lambda ranks: folder_of(folders(tmp_path)[ranks.rank], ranks))
    assert found == [(True, False), (False, False), (True, False), (False, False)]


def stand(tmp_path: Path, first: list[int], second: list[int]) -> None:
    for machine, steps in enumerate((first, second)):
        for step in steps:
            (tmp_path / f"machine-{machine}" / "checkpoints" / step_folder(step)).mkdir(parents=True)


def test_the_newest_step_that_every_machine_has_counts(tmp_path: Path) -> None:
    stand(tmp_path, [4, 8], [4])
    assert by_rank(lambda ranks: newest_step(folders(tmp_path)[ranks.rank], ranks)) == [4] * NUM_RANKS


def test_a_machine_without_any_of_the_checkpoints_is_not_begun_anew(tmp_path: Path) -> None:
    stand(tmp_path, [4, 8], [])
    with pytest.raises(CheckpointError, match=r"by machine there are those of steps \[4, 8\]; none"):
        by_rank(lambda ranks: newest_step(folders(tmp_path)[ranks.rank], ranks))


def test_without_checkpoints_a_run_begins(tmp_path: Path) -> None:
    assert by_rank(lambda ranks: newest_step(folders(tmp_path)[ranks.rank], ranks)) == [0] * NUM_RANKS
