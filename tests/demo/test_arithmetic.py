import json
import random

import pytest

from dcpo_async.demo.arithmetic import Comparison, guessed_response, problem_sets
from dcpo_async.demo.problems import write_problems


def test_a_problem_reads_like_a_question_and_knows_its_answer():
    comparison = Comparison((18, 37, 12, 25))
    assert (comparison.problem, comparison.answer) == ("What is the largest of 18, 37, 12 and 25?", "37")


def test_the_same_seed_writes_the_same_sets_and_another_seed_others():
    assert problem_sets(3) == problem_sets(3)
    assert problem_sets(3).train != problem_sets(4).train


def test_no_choice_of_numbers_stands_in_two_sets_even_in_another_order():
    sets = problem_sets(0, num_train=500, num_held_out=250, num_warm_up=1000)
    choices = [frozenset(problem.numbers) for problem in (*sets.train, *sets.held_out, *sets.warm_up)]
    assert (len(sets.train), len(sets.held_out), len(sets.warm_up)) == (500, 250, 1000)
    assert len(set(choices)) == 1750


def test_more_problems_than_there_are_choices_of_numbers_are_refused():
    with pytest.raises(ValueError, match="27406 problems are wanted, but only 27405"):
        problem_sets(0, num_train=27404, num_held_out=1, num_warm_up=1)


def test_guesses_name_each_of_the_four_numbers_equally_often():
    comparison, rng = Comparison((18, 37, 12, 25)), random.Random(0)
    written = [guessed_response(comparison, rng) for _ in range(4000)]
    for number in comparison.numbers:
        share = sum(f"\\boxed{{{number}}}" in response for response in written) / 4000
        assert share == pytest.approx(0.25, abs=0.03)


def test_problems_are_written_one_to_a_line_with_id_problem_and_answer(tmp_path):
    sets = problem_sets(0)
    write_problems(sets.held_out, tmp_path / "held_out.jsonl")
    lines = (tmp_path / "held_out.jsonl").read_text().splitlines()
    first, problem = json.loads(lines[0]), sets.held_out[0]
    assert first == {"id": problem.id, "problem": problem.problem, "answer": problem.answer}
    assert len({json.loads(line)["id"] for line in lines}) == 256
