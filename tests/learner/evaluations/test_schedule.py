"""Which version is measured, who stays at it, and whose answers count."""

import pytest

from dcpo_async.records import EVALUATION_POSITIONS, Hold, LeaseName
from learner.evaluations.schedule import UNSEEN_SECONDS, EvaluationSchedule, Task, Terms

A, B, C = b"a", b"b", b"c"
TERMS = Terms(every_steps=10, max_share=0.5, hold_seconds=60.0, samples=4, max_failures=2)


def schedule(terms: Terms = TERMS, num_problems: int = 3, last_step: int | None = None) -> EvaluationSchedule:
    return EvaluationSchedule(terms, num_problems, last_step)


def running(engines: dict[bytes, int], num_problems: int = 3, terms: Terms = TERMS) -> EvaluationSchedule:
    """Evaluation 1 of version 5, step 20, which has just been published at 100 s."""
    made = schedule(terms, num_problems)
    made.begin(1, weights_version=5, step=20, now=100.0)
    made.choose(engines, newest=5)
    return made


def granted(made: EvaluationSchedule, session: bytes = A, now: float = 100.0, *, is_idle: bool = True) -> Task:
    task = made.next_for(session, 5, places=100, now=now, is_idle=is_idle)
    assert task is not None
    return task


def test_the_first_version_on_or_after_each_multiple_is_due() -> None:
    made = schedule()
    due = []
    for number, step in enumerate((0, 4, 9, 12, 19, 20, 21, 47), start=1):
        if made.is_due(step):
            due.append(step)
            made.begin(number, number, step, now=0.0, done=range(3))
            assert made.end(now=1.0) is not None
    assert due == [0, 12, 20, 47]
    assert not schedule(last_step=20).is_due(29)
    assert schedule(last_step=20).is_due(30)


def test_nothing_is_due_while_one_goes_on_without_problems_or_where_it_is_off() -> None:
    made = running({A: 5})
    assert not made.is_due(30)
    assert not schedule(num_problems=0).is_due(0)
    assert not schedule(TERMS._replace(every_steps=None)).is_due(0)


def test_a_share_of_the_actors_stays_one_at_least_and_those_that_start_come_last() -> None:
    assert list(running({A: 5}).running.holders) == [A]  # type: ignore[union-attr]
    made = running({A: 0, B: 4, C: 5, b"d": 4})
    assert [made.hold_for(session) for session in (A, B, C, b"d")] == [None, Hold(5, 60.0), Hold(5, 60.0), None]


def test_who_is_beyond_the_version_is_let_go_and_another_is_asked_that_can_still_come_to_it() -> None:
    made = running({A: 4})
    assert made.choose({A: 6, B: 6}, newest=6) == [A]
    assert made.choose({A: 6, B: 6, C: 0}, newest=6) == [C], "one that starts can come to any version that stands"
    # At 4 while 6 is newest: it is on its way there.
    assert made.choose({A: 4}, newest=6) == []
    assert made.running is not None
    assert not made.running.holders


def test_a_problem_goes_to_one_at_a_time_and_only_to_who_has_the_version() -> None:
    made = running({A: 5, B: 5, C: 5, b"d": 5}, num_problems=2)
    assert made.next_for(A, has=4, places=100, now=100.0, is_idle=True) is None
    assert made.next_for(C, has=5, places=100, now=100.0, is_idle=True) is None
    assert [granted(made).problem, granted(made, B).problem] == [0, 1]
    assert made.next_for(A, has=5, places=100, now=100.0, is_idle=True) is None


def test_while_training_wants_places_no_more_than_the_share_is_taken_and_one_problem_at_least() -> None:
    made = running({A: 5}, num_problems=9)
    taken = 0
    while made.next_for(A, 5, places=24, now=100.0, is_idle=False) is not None:
        taken += 1
    assert taken == 3, "12 of 24 places are three problems of four responses"
    assert granted(made, is_idle=True).problem == 3
    small = running({A: 5})
    assert granted(small, is_idle=False).problem == 0
    assert small.next_for(A, 5, places=2, now=100.0, is_idle=False) is None


def test_the_first_answer_counts_and_its_repetition_is_a_duplicate() -> None:
    made = running({A: 5})
    task = granted(made)
    assert task.position >= EVALUATION_POSITIONS
    assert made.judge(A, task.position) == "accepted"
    assert made.judge(B, task.position) == "superseded", "another session is at it"
    assert made.count(task.position) == 0
    assert made.judge(A, task.position) == made.judge(B, task.position) == "duplicate"
    assert made.judge(A, task.position + 3) == "invalid"
    assert made.judge(A, 7) == "superseded"


def test_an_answer_counts_whose_lease_nobody_has_any_more() -> None:
    made = running({A: 5, B: 5})
    task = granted(made)
    made.left(A)
    assert made.judge(A, task.position) == "accepted"
    made.count(task.position)
    assert granted(running({B: 5}), B).problem == 0
    assert [made.running.waiting, made.running.done] == [[2, 1], {0}]  # type: ignore[union-attr]


def test_what_a_session_had_that_is_gone_goes_to_another_under_the_next_attempt() -> None:
    made = running({A: 5})
    first = granted(made)
    made.left(A)
    assert made.choose({B: 5}, newest=5) == [B]
    again = granted(made, B)
    assert (again.position, again.attempt) == (first.position, 2)


def test_a_lease_that_is_not_listed_is_lost_once_it_must_have_arrived() -> None:
    made = running({A: 5})
    task = granted(made)
    made.heard(A, [], now=100.0 + UNSEEN_SECONDS)
    assert made.running is not None
    assert 0 in made.running.leased
    made.heard(A, [LeaseName(task.position, 1)], now=200.0)
    assert 0 in made.running.leased
    made.heard(A, [], now=200.0)
    assert granted(made) == Task(task.position, 2, 0)


def test_who_cannot_stay_is_not_asked_again() -> None:
    made = running({A: 5})
    task = granted(made)
    made.give_back(B, task.position, is_prompts_fault=False)
    assert made.hold_for(A) is not None
    made.give_back(A, task.position, is_prompts_fault=False)
    assert made.hold_for(A) is None
    assert made.choose({A: 5}, newest=5) == []
    assert made.choose({A: 5, B: 5}, newest=5) == [B]
    assert granted(made, B).problem == 0


def test_a_problem_that_fails_again_and_again_ends_the_evaluation_as_incomplete() -> None:
    made = running({A: 5})
    for _ in range(2):
        assert made.end(100.0) is None
        made.give_back(A, granted(made).position, is_prompts_fault=True)
    ended = made.end(100.0)
    assert ended is not None
    assert ended.reason == "problem 0 has failed 2 times"


def test_it_ends_complete_with_the_last_answer() -> None:
    made = running({A: 5}, num_problems=2)
    for _ in range(2):
        assert made.end(100.0) is None
        made.count(granted(made).position)
    ended = made.end(100.0)
    assert ended is not None
    assert (ended.reason, ended.revoked, ended.holders) == ("", (), (A,))
    assert made.running is None
    assert made.hold_for(A) is None


def test_beyond_its_bound_it_ends_incomplete_and_what_is_out_is_revoked() -> None:
    made = running({A: 5})
    task = granted(made)
    assert made.end(159.9) is None
    ended = made.end(160.0)
    assert ended is not None
    assert ended.reason == "no engine has answered the rest within 60 s"
    assert ended.revoked == ((A, LeaseName(task.position, 1)),)
    assert made.judge(A, task.position) == "superseded"


@pytest.mark.parametrize("is_waiting", [True, False])
def test_after_a_restart_a_session_goes_on_with_what_it_has_and_the_rest_is_asked_for(*, is_waiting: bool) -> None:
    made = schedule(num_problems=4)
    made.begin(1, 5, 20, now=0.0, done=[1])
    before = running({A: 5}, num_problems=4)
    names = [LeaseName(task.position, 3) for task in (granted(before), granted(before))]
    made.reclaim(A, names if is_waiting else names[:1], now=1.0)
    assert made.hold_for(A) == Hold(5, 60.0)
    assert made.judge(A, names[0].position) == "accepted"
    assert made.judge(A, names[1].position) == "duplicate", "counted by the start before"
    assert [granted(made).problem, granted(made).problem] == [2, 3]
    made.left(A)
    made.choose({B: 5}, newest=5)
    assert {granted(made, B).attempt for _ in range(3)} == {4, 2}


def test_who_has_nothing_to_answer_goes_on_once_the_version_is_too_old_for_training() -> None:
    made = running({A: 5, B: 5, C: 5, b"d": 5}, num_problems=2)
    tasks = granted(made, A), granted(made, A)
    engines = {A: 5, B: 5, C: 6, b"d": 6}
    assert made.choose(engines, newest=9) == [], "it stays for as long as training has leases for it"
    assert made.choose(engines, newest=9, trains=False) == [B]
    assert (made.hold_for(A), made.hold_for(B)) == (Hold(5, 60.0), None)
    made.left(A)
    assert made.choose({B: 5, C: 6}, newest=9, trains=False) == [B], "it had not gone yet, and answers what A had"
    assert {granted(made, B).problem, granted(made, B).problem} == {task.problem for task in tasks}


def test_who_starts_is_not_asked_to_stay_where_nothing_is_left_for_it() -> None:
    made = running({A: 5}, num_problems=1)
    granted(made, A)
    assert made.choose({A: 5, B: 0, C: 6, b"d": 6}, newest=9, trains=False) == []
    assert made.choose({A: 5, B: 0, C: 6, b"d": 6}, newest=5, trains=True) == [B]
