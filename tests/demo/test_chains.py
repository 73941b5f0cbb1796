"""Chains of facts: the table, problems, guesses at them, and the model that begins."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcpo_async.demo.chain_model import chain_tokenizer, write_start
from dcpo_async.demo.chain_reading import read_facts
from dcpo_async.demo.chains import Chain, ChainSizes, ChainTask, FactTable
from dcpo_async.demo.tasks import demo_task
from dcpo_async.errors import ConfigError
from dcpo_async.grading import grade

SMALL = ChainSizes(states=4, operations=3, longest=2, prompts=12, held_out=6)
# Operation 0 adds 1, of which all is known; operation 1 adds 2, of which nothing is.
TABLE = FactTable(((1, 2, 3, 0), (2, 3, 0, 1)), ((True,) * 4, (False,) * 4))


def test_a_chain_applies_its_operations_in_turn_and_its_last_state_is_the_answer() -> None:
    chain = TABLE.chain(3, [0, 1, 1])
    assert chain == Chain(3, (0, 1, 1), (0, 2, 0))
    assert (chain.problem, chain.answer) == ("3 f0 f1 f1", "0")


def test_a_guess_follows_known_facts_and_draws_evenly_for_the_others() -> None:
    rng = random.Random(0)
    assert TABLE.guessed_response(TABLE.chain(3, [0, 0]), rng) == r"0 \boxed{ 1 }"
    unknown = TABLE.chain(0, [1])
    right = [grade(TABLE.guessed_response(unknown, rng), unknown.answer).correct for _ in range(2000)]
    assert sum(right) / len(right) == pytest.approx(0.25, abs=0.04)


def test_the_same_seed_draws_the_same_task_and_no_problem_stands_in_two_sets() -> None:
    task = ChainTask.drawn(SMALL, 3)
    assert task == ChainTask.drawn(SMALL, 3)
    assert task.table != ChainTask.drawn(SMALL, 4).table
    assert len({chain.problem for chain in (*task.train, *task.held_out)}) == 18
    assert all(sorted(row) == [0, 1, 2, 3] for row in task.table.after)


def test_few_of_the_shortest_problems_are_left_to_measure_on() -> None:
    tasks = [ChainTask.drawn(ChainSizes(), seed) for seed in range(4)]
    for chains, shares in (
        ([chain for task in tasks for chain in task.train], (0.14, 0.39, 0.47)),
        ([chain for task in tasks for chain in task.held_out], (0.01, 0.39, 0.60)),
    ):
        lengths = [len(chain.operations) for chain in chains]
        assert [lengths.count(length) / len(lengths) for length in (1, 2, 3)] == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["state=4"], "write NAME=VALUE with one of states, operations"),
        (["states=many"], "'many' is not a number"),
        (["states=1"], "states 1: it must be at least 2"),
        (["known=1"], "a share from 0 to below 1"),
        (["states=2", "operations=2", "longest=1"], "at most half of the 4 chains"),
    ],
)
def test_sizes_that_no_task_has_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChainSizes.read(words)


def test_sizes_are_of_chains_alone_and_make_room_for_the_longest() -> None:
    with pytest.raises(ConfigError, match="only --task chains has sizes"):
        demo_task("largest", ["states=4"])
    assert "9" in demo_task("chains", ["longest=4"]).settings
    assert ChainSizes.read(SMALL.words) == SMALL


def test_states_operations_and_boxes_are_one_token_each() -> None:
    tokenizer, task = chain_tokenizer(SMALL), ChainTask.drawn(SMALL, 0)
    chain = next(chain for chain in task.train if len(chain.operations) == 2)
    response = task.table.guessed_response(chain, random.Random(1))
    assert len(tokenizer.encode(chain.problem)) == 3
    assert len(tokenizer.encode(response)) == 4
    assert tokenizer.decode(tokenizer.encode(response)) == response


def test_a_start_can_be_read_again_and_its_facts_asked_for(tmp_path: Path) -> None:
    task = ChainTask.drawn(SMALL, 0)
    write_start(task, tmp_path, steps=2)
    assert ChainTask.read(tmp_path) == task
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    found = read_facts(model, AutoTokenizer.from_pretrained(tmp_path / "model"), task.table)
    assert all(0 <= value <= 1 for value in (found.known, found.learned, found.probability))
