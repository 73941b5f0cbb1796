"""Groups a second of nine actors, of the same beside one that is 60 times slower, and beside a hoarder.

`python -m bench.straggler`. A real coordinator with a ledger on disk, real sessions and scripted engines in one
process, channels in memory, and a rank that trains in no time: a batch that waits is all that holds the fleet up.
"""

import argparse
import asyncio
import json
import logging
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from actor.engine.scripted import ScriptedEngine
from bench.fleet.rank import InstantRank
from dcpo_async.config import RunConfig
from dcpo_async.grading import InlineGrading, graded, submissions
from dcpo_async.protocol.conversion import sampling_of
from dcpo_async.protocol.events import Joined, LeaseGranted, NewVersion
from dcpo_async.protocol.messages import Hello
from dcpo_async.protocol.session import ActorSession
from dcpo_async.records import Lease, Prompt
from dcpo_async.transport.memory_channel import MemoryNetwork
from learner.coordinator.coordinator import Coordinator
from learner.coordinator.intake import Intake
from learner.ledger.ledger import Ledger

VOCAB_SIZE, GROUP_SIZE, MAX_TOKENS, GROUPS_PER_STEP, MAX_LAG, GROUPS_IN_FLIGHT = 1000, 4, 100, 8, 4, 2
TOKENS_PER_SECOND, RATIO, NUM_FAST = 50.0, 60.0, 9


class Actor:
    """A session with a scripted engine that has every version as soon as it is heard of.

    Args:
        tokens_per_second: of each response; None for one that takes leases and never answers.
    """

    def __init__(self, network: MemoryNetwork, folder: Path, name: str, tokens_per_second: float | None) -> None:
        self._channel, self._folder = network.dealer(name.encode()), folder
        self._engine = ScriptedEngine(tokens_per_second=tokens_per_second)
        self._never_answers = tokens_per_second is None
        hello = Hello(session_id=secrets.token_hex(16), name=name, host=name, engine="scripted")
        self._session = ActorSession(
            hello, "memory", time.monotonic(), join_timeout_seconds=60.0, rejoin_timeout_seconds=60.0
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._grading = InlineGrading("boxed")

    async def run(self) -> None:
        """Serve until this is cancelled."""
        session = self._session
        while True:
            session.running_tokens = self._engine.running_tokens
            session.activity = "generating" if session.running_tokens else "idle"
            for envelope in session.messages_due(time.monotonic()):
                await self._channel.send(envelope)
            envelope = await self._channel.receive(min(0.05, session.seconds_until_due(time.monotonic())))
            for event in session.on_envelope(envelope, time.monotonic()) if envelope else ():
                match event:
                    case Joined():
                        session.capacity = GROUPS_IN_FLIGHT * GROUP_SIZE
                    case NewVersion(weights_version=version):
                        await (self._engine.adopt if session.weights_version else self._engine.start)(
                            self._folder, version, None
                        )
                        session.adopted(version, None)
                    case LeaseGranted(lease=lease) if not self._never_answers:
                        task = asyncio.create_task(self._answer(lease))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)

    async def _answer(self, lease: Lease) -> None:
        session = self._session
        assert session.welcome is not None

        def ended(*num_tokens: int) -> None:
            with suppress(KeyError):
                session.response_ended(lease, *num_tokens)

        responses = await self._engine.generate(lease, sampling_of(session.welcome), ended)
        verdicts = await self._grading.grade_all(submissions(lease, responses))
        with suppress(KeyError):
            session.finish(graded(lease, responses, verdicts, 0.0), time.monotonic())


async def measured(folder: Path, speeds: list[float | None], warm_up: float, seconds: float) -> str:
    """Groups and steps a second of a fleet, and the longest time without a step."""
    (folder / "config.json").write_text(json.dumps({"vocab_size": VOCAB_SIZE, "eos_token_id": 2}))
    config = RunConfig(
        folder=folder,
        sampling={"group_size": GROUP_SIZE, "max_response_tokens": MAX_TOKENS},  # type: ignore[arg-type]
        training={"groups_per_step": GROUPS_PER_STEP},  # type: ignore[arg-type]
        model={"dtype": "float32"},  # type: ignore[arg-type]
        lag={"max_lag": MAX_LAG},  # type: ignore[arg-type]
        actor={"groups_in_flight": GROUPS_IN_FLIGHT, "regrade_share": 0.0},  # type: ignore[arg-type]
    )
    ledger, actors, ranks = Ledger(folder / "ledger"), MemoryNetwork(), MemoryNetwork()
    prompts = [Prompt(f"prompt-{i}", f"problem {i}", str(i), (1, 2, 3)) for i in range(2000)]
    intake = Intake(config, prompts, VOCAB_SIZE, ledger)
    coordinator = Coordinator(config, "run", intake, ledger, actors.router(), ranks.router(), weights_port=1)
    rank = InstantRank(ranks.dealer(b"rank-0"), ledger.incarnation)
    # The slow one joins first.
    fleet = [Actor(actors, folder, f"actor-{number}", speed) for number, speed in enumerate(speeds)]
    parts = [coordinator.run(), rank.run(), *(actor.run() for actor in fleet)]
    tasks = [asyncio.create_task(part) for part in parts]
    await asyncio.sleep(warm_up)
    began, groups, steps, longest, stepped_at = time.monotonic(), ledger.num_groups, rank.step, 0.0, time.monotonic()
    step = rank.step
    while time.monotonic() < began + seconds:
        await asyncio.sleep(0.05)
        now = time.monotonic()
        stepped_at = now if rank.step > step else stepped_at
        step, longest = rank.step, max(longest, now - stepped_at)
        for task in tasks:
            if task.done():
                task.result()
    groups, steps = ledger.num_groups - groups, rank.step - steps
    counts = {name: intake.counts[name] for name in ("leases_again", "leases_handed_over", "leases_stalled")}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    ledger.abandon()
    return f"{groups / seconds:6.2f} groups/s, {steps / seconds:5.2f} steps/s, longest wait {longest:4.1f} s, {counts}"


def main() -> None:
    """Run each fleet, and print a line for it."""
    parser = argparse.ArgumentParser(prog="bench.straggler", description=__doc__)
    parser.add_argument("--warm-up-seconds", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", choices=("nine", "slow", "hoarder"), nargs="+", default=("nine", "slow", "hoarder"))
    parser.add_argument("--log", action="store_true", help="show what the coordinator says")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO if options.log else logging.ERROR)
    fast: list[float | None] = [TOKENS_PER_SECOND] * NUM_FAST
    fleets = {"nine": fast, "slow": [TOKENS_PER_SECOND / RATIO, *fast], "hoarder": [None, *fast]}
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            line = asyncio.run(measured(Path(folder), fleets[name], options.warm_up_seconds, options.seconds))
            print(f"{name:8} {line}", flush=True)


if __name__ == "__main__":
    main()
