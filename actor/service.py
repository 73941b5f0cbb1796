"""One engine process of the rollout service: joins a learner, answers leases, follows its weights. MAIN LOOP."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actor.engine.choice import add_engine_arguments, make_engine
from actor.engine.interface import Engine
from actor.weights.puller import WeightPuller, default_cache_folder
from dcpo_async.errors import (
    DcpoError,
    EngineError,
    PeerLostError,
    PromptError,
    ProtocolError,
    RefusedError,
    VersionMismatchError,
    WeightsError,
)
from dcpo_async.grading import MAX_RESPONSE_CHARS, GradingPool, Verdict, reward_of
from dcpo_async.protocol.messages import Envelope, Hello, Welcome
from dcpo_async.protocol.session import (
    ActorSession,
    Dismissed,
    Event,
    GroupAcknowledged,
    Joined,
    LeaseGranted,
    NewVersion,
    Refused,
)
from dcpo_async.records import Group, Lease, Response, Sampling
from dcpo_async.transport.security import CurveClient, load_client_keys
from dcpo_async.transport.zmq_channel import DealerChannel

log = logging.getLogger("actor")

POLL_SECONDS = 0.05
DRAIN_SECONDS = 60.0
REJOIN_SECONDS = 3600.0
RETRY_SECONDS = 2.0
COMPLAINT_SECONDS = 60.0
MAX_MESSAGE_BYTES = 1 << 30


class ActorService:
    """Keeps an engine fed with leases and the coordinator with groups.

    Args:
        options: of the command line, see `_parser`.
        keys: CURVE keys, None on loopback or with --insecure.
    """

    def __init__(self, options: argparse.Namespace, keys: CurveClient | None) -> None:
        self._options, self._keys = options, keys
        identity = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        hello = Hello(session_id=identity, host=socket.gethostname(), engine=options.engine)
        self._identity = identity.encode()
        self._channel = self._connect(options.learner)
        self.session = ActorSession(
            hello,
            options.learner,
            time.monotonic(),
            join_timeout_seconds=options.join_seconds,
            rejoin_timeout_seconds=REJOIN_SECONDS,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: DcpoError | None = None
        self._version_heard = asyncio.Event()
        self._version_adopted = asyncio.Condition()
        self._is_working = False
        self._complain_at = 0.0
        self._engine: Engine | None = None
        self._pool: GradingPool | None = None

    # ---- main loop

    async def run(self) -> None:
        """Serve until the learner ends the run, a drain is complete, or something fails for good.

        Raises:
            UnreachableError: no learner answered in time.
            RefusedError: the learner wants nothing to do with this actor.
            EngineError, WeightsError: generation cannot go on; the leases have been given back.
        """
        try:
            while not self.session.ended:
                for envelope in self.session.messages_due(time.monotonic()):
                    if not await self._has_sent(envelope):
                        break
                for event in await self._events():
                    self._on_event(event)
        finally:
            await self._close()
        if self._failure is not None:
            raise self._failure

    async def _events(self) -> list[Event]:
        try:
            wait = min(self.session.seconds_until_due(time.monotonic()), POLL_SECONDS)
            envelope = await self._channel.receive(wait)
            return self.session.on_envelope(envelope, time.monotonic()) if envelope else []
        except VersionMismatchError as error:
            raise RefusedError(f"the learner at {self._options.learner}: {error}") from None
        except ProtocolError as error:
            log.warning("a message of the learner was dropped: %s", error)
            return []

    async def _has_sent(self, envelope: Envelope) -> bool:
        """Send; where nobody takes it, the rest would wait in vain too, and all that matters falls due again."""
        try:
            await self._channel.send(envelope)
        except PeerLostError as error:
            if time.monotonic() >= self._complain_at:
                self._complain_at = time.monotonic() + COMPLAINT_SECONDS
                log.warning("%s; it is sent again", error)
            return False
        return True

    def _on_event(self, event: Event) -> None:
        match event:
            case Joined():
                self._join(event.welcome)
            case NewVersion():
                self._version_heard.set()
            case LeaseGranted():
                self._start(self._answer(event.lease))
            case GroupAcknowledged() if event.ack.outcome != "accepted":
                log.warning("group %d: %s %s", event.ack.position, event.ack.outcome, event.ack.detail)
            case Refused():
                self._failure = RefusedError(event.reject.detail)
            case Dismissed():
                log.info("the learner takes no more groups: %s", event.detail)

    def drain(self) -> None:
        """Take no more leases, finish what is held, say bye."""
        log.info("draining: %d leases are finished first", self.session.num_working)
        self.session.drain(time.monotonic(), DRAIN_SECONDS, "asked to end")

    # ---- joining

    def _join(self, welcome: Welcome) -> None:
        """Begin to work; a later welcome of the same run changes nothing for an engine that runs."""
        if not self._is_working:
            self._is_working = True
            self._start(self._work(welcome))

    async def _work(self, welcome: Welcome) -> None:
        self._pool = GradingPool(welcome.grading_workers, welcome.grading_timeout_seconds, welcome.extraction)
        # In a thread: importing vLLM takes so long that the learner would take the silence for the end.
        self._engine = await asyncio.to_thread(
            make_engine,
            self._options,
            dtype=welcome.dtype,
            max_model_tokens=welcome.max_prompt_tokens + welcome.max_response_tokens,
            max_responses=welcome.groups_in_flight * welcome.group_size,
            kv_after_update=welcome.kv_after_update,
        )
        await self._follow_weights(self._engine, welcome)

    def _connect(self, address: str) -> DealerChannel:
        insecure = self._options.insecure
        return DealerChannel(address, self._identity, MAX_MESSAGE_BYTES, self._keys, insecure=insecure)

    # ---- weights

    async def _follow_weights(self, engine: Engine, welcome: Welcome) -> None:
        """Adopt the newest version whenever a newer one is heard of; the first one starts the engine."""
        address = f"{self._options.learner.rpartition(':')[0]}:{welcome.weights_port}"
        run_id = self.session.run_id
        cache = default_cache_folder(run_id)
        channel = self._connect(address)
        puller = WeightPuller(channel, cache, run_id, welcome.chunk_bytes, peer=f"the weight server at {address}")
        try:
            while True:
                await self._version_heard.wait()
                self._version_heard.clear()
                try:
                    folder, manifest = await puller.fetch()
                except WeightsError as error:
                    log.warning("%s; the fetch is tried again in %.0f s", error, RETRY_SECONDS)
                    await asyncio.sleep(RETRY_SECONDS)
                    self._version_heard.set()
                    continue
                await self._adopt(engine, folder, manifest.weights_version)
                self.session.capacity = welcome.groups_in_flight
                await asyncio.to_thread(puller.prune, {manifest.weights_version})
        finally:
            puller.close()
            # Shared memory outlives its processes: the last actor of a run leaves no weights in it.
            puller.prune(())
            channel.close()

    async def _adopt(self, engine: Engine, folder: Path, weights_version: int) -> None:
        """Bring the engine to a version that lies whole in a folder, and let waiting leases go on."""
        if engine.weights_version == 0:
            await engine.start(folder, weights_version)
            log.info("engine %s is ready with weights version %d", engine.name, weights_version)
        elif weights_version > engine.weights_version:
            timing = await engine.adopt(folder, weights_version)
            log.info(
                "adopted weights version %d: paused for %.3f s with %d responses in flight",
                weights_version,
                timing.pause_seconds,
                timing.responses_in_flight,
            )
        self.session.weights_version = weights_version
        async with self._version_adopted:
            self._version_adopted.notify_all()

    # ---- leases

    async def _answer(self, lease: Lease) -> None:
        """Generate, grade and hand over one group."""
        engine, pool, welcome = self._engine, self._pool, self.session.welcome
        assert engine is not None
        assert pool is not None
        assert welcome is not None
        async with self._version_adopted:
            await self._version_adopted.wait_for(lambda: engine.weights_version >= lease.min_version)
        try:
            responses = await engine.generate(lease, sampling_of(welcome))
        except PromptError as error:
            self.session.fail(lease, str(error), is_prompts_fault=True)
            return
        verdicts = await pool.grade_many([response.text for response in responses], lease.answer)
        self.session.tokens_generated += sum(len(response.token_ids) for response in responses)
        self.session.finish(graded(lease, responses, verdicts, welcome.format_penalty), time.monotonic())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        """A part that failed ends the process: its leases go back at once, and the launcher starts it anew."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None or self.session.ended:
            return
        if not isinstance(error, DcpoError):
            log.error("unexpected failure", exc_info=error)
            error = EngineError(f"{type(error).__name__}: {error}")
        self._failure = self._failure or error
        log.error("%s; %d leases are given back", error, self.session.num_working)
        self.session.drain(time.monotonic(), 0.0, str(error))

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._engine is not None:
            await self._engine.close()
        if self._pool is not None:
            self._pool.close()
        self._channel.close()


def sampling_of(welcome: Welcome) -> Sampling:
    """How the run samples."""
    return Sampling(welcome.group_size, welcome.temperature, welcome.max_response_tokens, welcome.seed)


def graded(lease: Lease, responses: Sequence[Response], verdicts: Sequence[Verdict], format_penalty: float) -> Group:
    """The group of a lease, with the reward and the reason of each response."""
    return Group(
        position=lease.position,
        attempt=lease.attempt,
        responses=tuple(replace(response, text=response.text[-MAX_RESPONSE_CHARS:]) for response in responses),
        rewards=tuple(reward_of(verdict, format_penalty) for verdict in verdicts),
        reasons=tuple(verdict.reason for verdict in verdicts),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of an engine process; the launcher starts it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    options = _parser().parse_args(argv)
    try:
        asyncio.run(_serve(options))
    except DcpoError as error:
        print(f"dcpo-actor: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


async def _serve(options: argparse.Namespace) -> None:
    service = ActorService(options, load_client_keys(options.keys) if options.keys else None)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.drain)
    await service.run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="actor.service", description="One engine process; dcpo-actor starts it.")
    parser.add_argument("--learner", required=True)
    add_engine_arguments(parser)
    parser.add_argument("--join-seconds", type=float, default=300.0)
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--insecure", action="store_true")
    return parser


if __name__ == "__main__":
    main()
