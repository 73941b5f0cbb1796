import pytest
import torch

from actor.engine.workers.canary_worker import kept_blocks


def test_blocks_come_back_as_they_were_and_others_stay_as_they_became() -> None:
    cache = torch.arange(24.0).reshape(6, 4)
    with kept_blocks([cache], 6, range(1, 3)):
        cache.fill_(-1)
    assert cache[1:3].flatten().tolist() == list(range(4, 12))
    assert (cache[0] == -1).all()
    assert (cache[3:] == -1).all()


def test_a_block_that_a_cache_cuts_into_several_comes_back_whole() -> None:
    cache = torch.arange(12.0)[:, None]
    with kept_blocks([cache], 3, range(1, 2)):
        cache.fill_(-1)
    assert cache[:, 0].tolist() == [-1] * 4 + [4, 5, 6, 7] + [-1] * 4


def test_layers_that_share_memory_in_different_shapes_all_come_back() -> None:
    memory = torch.arange(16.0)
    narrow, wide = memory.as_strided((4, 2), (4, 1)), memory.view(4, 4)
    with kept_blocks([narrow, wide], 4, range(1, 3)):
        memory.fill_(-1)
    assert memory.tolist() == [-1] * 4 + list(range(4, 12)) + [-1] * 4


def test_blocks_come_back_after_a_failure_too() -> None:
    cache = torch.ones(4, 2)

    def step() -> None:
        with kept_blocks([cache], 4, range(1, 2)):
            cache.zero_()
            raise ValueError("step")

    with pytest.raises(ValueError, match="step"):
        step()
    assert cache.sum(1).tolist() == [0, 2, 0, 0]


def test_a_cache_of_another_number_of_blocks_is_refused() -> None:
    with pytest.raises(RuntimeError, match="7 blocks is not 3 blocks"), kept_blocks([torch.ones(7, 2)], 3, range(1, 2)):
        pass
