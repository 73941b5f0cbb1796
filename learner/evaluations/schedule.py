"""Which version is measured, by whom, and who answers which problem. Pure: no clock, no socket, no file."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dcpo_async.records import EVALUATION_POSITIONS, Hold, LeaseName

MAX_PROBLEMS = 1 << 24
"""Of one evaluation: so far apart are the positions of two."""
UNSEEN_SECONDS = 5.0
"""A lease that its holder does not list by then goes to another; before, it may be on its way."""
Judgement = Literal["accepted", "duplicate", "superseded", "invalid"]


class Terms(NamedTuple):
    """What the settings say.

    Attributes:
        every_steps: between two evaluations; None for none at all.
        max_share: of the actors that stay at the version, and of the fleet's places while training has use for them.
        hold_seconds: after which an evaluation ends, answered or not.
        samples: responses to each problem.
        max_failures: of one problem, after which the evaluation ends.
    """

    every_steps: int | None
    max_share: float
    hold_seconds: float
    samples: int
    max_failures: int


class Task(NamedTuple):
    """One problem for one session."""

    position: int
    attempt: int
    problem: int


@dataclass(slots=True)
class _Leased:
    session: bytes
    attempt: int
    granted_at: float


@dataclass(slots=True)
class Running:
    """The evaluation that is going on.

    Attributes:
        evaluation: its number.
        waiting: problems that nobody answers at the moment, the next one last.
        leased: by problem.
        holders: sessions that are asked to stay at the version, the oldest first.
        barred: sessions that could not stay, and are not asked again.
    """

    evaluation: int
    weights_version: int
    step: int
    began_at: float
    waiting: list[int]
    leased: dict[int, _Leased] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    holders: dict[bytes, None] = field(default_factory=dict)
    barred: set[bytes] = field(default_factory=set)
    attempts: Counter[int] = field(default_factory=Counter)
    failures: Counter[int] = field(default_factory=Counter)


class Ended(NamedTuple):
    """How an evaluation has ended.

    Attributes:
        reason: why it is incomplete; empty where it is complete.
        revoked: what was out.
        holders: that may go on to newer versions.
    """

    running: Running
    reason: str
    revoked: tuple[tuple[bytes, LeaseName], ...]
    holders: tuple[bytes, ...]


class EvaluationSchedule:
    """One evaluation at a time, of one version, by a few sessions that stay at it.

    A version is measured where it is the first on or after a multiple of `every_steps` and no other evaluation is going
    on. Holders are chosen among the engines that have it or can still come to it; each problem is leased to one of them
    at a time, and whichever sound answer comes first counts. Nothing here touches the leases of training.

    Args:
        terms: of the run.
        num_problems: of all sets, 0 where nothing is measured.
        last_step: of the newest evaluation that there was, None before the first.

    Attributes:
        running: None between two evaluations.
    """

    def __init__(self, terms: Terms, num_problems: int, last_step: int | None) -> None:
        assert num_problems <= MAX_PROBLEMS
        self._terms, self._num_problems, self._last_step = terms, num_problems, last_step
        self.every_steps = terms.every_steps
        self.running: Running | None = None

    # ---- what is measured

    def is_due(self, step: int) -> bool:
        """Whether a version of this step, just published, begins an evaluation."""
        every = self.every_steps
        if every is None or not self._num_problems or self.running is not None:
            return False
        return self._last_step is None or step // every > self._last_step // every

    def begin(
        self, evaluation: int, weights_version: int, step: int, now: float, done: Collection[int] = ()
    ) -> Running:
        """Measure a version; `done` is what an earlier start of the learner has counted of it."""
        waiting = [problem for problem in reversed(range(self._num_problems)) if problem not in set(done)]
        self.running = Running(evaluation, weights_version, step, now, waiting, done=set(done))
        self._last_step = step
        return self.running

    def end(self, now: float) -> Ended | None:
        """Whether the evaluation is over: all is answered, or will not be within the bound."""
        running = self.running
        if running is None:
            return None
        worst = max(running.failures.values(), default=0)
        if len(running.done) == self._num_problems:
            reason = ""
        elif worst >= self._terms.max_failures:
            problem = next(problem for problem, count in running.failures.items() if count == worst)
            reason = f"problem {problem} has failed {worst} times"
        elif now - running.began_at >= self._terms.hold_seconds:
            reason = f"no engine has answered the rest within {self._terms.hold_seconds:g} s"
        else:
            return None
        self.running = None
        out = tuple(
            (lease.session, LeaseName(_position(running, problem), lease.attempt))
            for problem, lease in running.leased.items()
        )
        return Ended(running, reason, out, tuple(running.holders))

    # ---- who stays

    def choose(self, engines: Mapping[bytes, int], newest: int, *, trains: bool = True) -> list[bytes]:
        """Let go of holders that are gone or beyond the version, and ask others in their place.

        Once the version is too old for training, only those stay that have something to answer.

        Args:
            engines: version of each actor by its last word, 0 before its first, in the order of joining.
            newest: version that actors are told of: as long as it is the one that is measured, all can come to it.
            trains: whether a lease of training may still go out to who stays at the version.

        Returns the sessions to which the answer of `hold_for` has changed.
        """
        running = self.running
        if running is None:
            return []
        version = running.weights_version
        lost = [session for session in running.holders if engines.get(session, version + 1) > version]
        if not trains and not running.waiting:
            answering = {lease.session for lease in running.leased.values()}
            lost += [session for session in running.holders if session not in answering and session not in lost]
        for session in lost:
            self.left(session)
        if not trains and not running.waiting:
            return [session for session in lost if session in engines]
        room = max(1, int(self._terms.max_share * len(engines))) - len(running.holders)
        taken = {*running.holders, *running.barred}
        fitting = [
            session
            for session, has in engines.items()
            if session not in taken and (has in (0, version) or (newest == version and has < version))
        ]
        # One that starts needs a while.
        chosen = sorted(fitting, key=lambda session: engines[session] == 0)[: max(0, room)]
        running.holders |= dict.fromkeys(chosen)
        return [*(session for session in lost if session in engines), *chosen]

    def hold_for(self, session: bytes) -> Hold | None:
        """What a session is asked for."""
        if self.running is None or session not in self.running.holders:
            return None
        return Hold(self.running.weights_version, self._terms.hold_seconds)

    def num_held(self, session: bytes) -> int:
        """Problems that a session has been given and has not answered."""
        return 0 if self.running is None else sum(one.session == session for one in self.running.leased.values())

    def left(self, session: bytes) -> None:
        """A session is gone, or does not stay: what it had waits for others."""
        if self.running is not None:
            self.running.holders.pop(session, None)
            for problem, lease in list(self.running.leased.items()):
                if lease.session == session:
                    self._put_back(problem)

    def reclaim(self, session: bytes, held: Sequence[LeaseName], now: float) -> None:
        """Take a session that joins again at its word: it goes on with what nobody else has got meanwhile."""
        for name in held:
            problem = self._problem(name.position)
            if self.running is not None and problem in self.running.waiting:
                self.running.waiting.remove(problem)
                self.running.leased[problem] = _Leased(session, name.attempt, now)
                self.running.attempts[problem] = max(name.attempt, self.running.attempts[problem])
                self.running.holders[session] = None

    def heard(self, session: bytes, held: Sequence[LeaseName], now: float) -> None:
        """A heartbeat: leases that it should list and does not are lost, and wait for others."""
        if self.running is None:
            return
        listed = {self._problem(name.position) for name in held}
        for problem, lease in list(self.running.leased.items()):
            if lease.session == session and problem not in listed and now - lease.granted_at > UNSEEN_SECONDS:
                self._put_back(problem)

    # ---- who answers what

    def next_for(self, session: bytes, has: int, places: int, now: float, *, is_idle: bool) -> Task | None:
        """The next problem for a session; None where there is none for it now.

        Args:
            has: version of its engine.
            places: for responses, of the whole fleet.
            is_idle: training has no use for more of its places.
        """
        running = self.running
        if running is None or session not in running.holders or has != running.weights_version or not running.waiting:
            return None
        samples = self._terms.samples
        if not is_idle and (len(running.leased) + 1) * samples > max(samples, self._terms.max_share * places):
            return None
        problem = running.waiting.pop()
        running.attempts[problem] += 1
        running.leased[problem] = _Leased(session, running.attempts[problem], now)
        return Task(_position(running, problem), running.attempts[problem], problem)

    def judge(self, session: bytes, position: int) -> Judgement:
        """What an answer is by its problem alone: the first one counts, unless another session is at it."""
        problem = self._problem(position)
        if self.running is None or problem is None:
            return "superseded"
        if problem >= self._num_problems:
            return "invalid"
        if problem in self.running.done:
            return "duplicate"
        lease = self.running.leased.get(problem)
        return "accepted" if lease is None or lease.session == session else "superseded"

    def count(self, position: int) -> int:
        """An answer that was judged accepted is in the ledger; returns the number of its problem."""
        problem, running = self._problem(position), self.running
        assert running is not None
        assert problem is not None
        if running.leased.pop(problem, None) is None:
            running.waiting.remove(problem)
        running.done.add(problem)
        return problem

    def give_back(self, session: bytes, position: int, *, is_prompts_fault: bool) -> None:
        """A session could not answer a problem; where that is not the problem's fault, it is not asked again."""
        problem = self._problem(position)
        lease = self.running.leased.get(problem) if self.running is not None and problem is not None else None
        if self.running is None or problem is None or lease is None or lease.session != session:
            return
        self._put_back(problem)
        self.running.failures[problem] += is_prompts_fault
        if not is_prompts_fault:
            self.running.barred.add(session)
            self.left(session)

    def _put_back(self, problem: int) -> None:
        assert self.running is not None
        del self.running.leased[problem]
        self.running.waiting.append(problem)

    def _problem(self, position: int) -> int | None:
        """The problem of a position; None where that is of another evaluation."""
        evaluation, problem = divmod(position - EVALUATION_POSITIONS, MAX_PROBLEMS)
        return problem if self.running is not None and evaluation == self.running.evaluation else None


def _position(running: Running, problem: int) -> int:
    return EVALUATION_POSITIONS + running.evaluation * MAX_PROBLEMS + problem
