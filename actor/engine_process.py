"""The process of one engine; the launcher starts it."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actor.engine.choice import add_engine_arguments, make_engine
from actor.engine.interface import Engine, EngineLoad
from actor.learner_link import LearnerLink
from actor.service import ActorService
from actor.weights.cache import cache_folder
from actor.weights.relay import offer
from actor.weights_follower import WeightsFollower, WeightsPlan
from actor.weights_options import add_weights_arguments
from dcpo_async.errors import DcpoError
from dcpo_async.grading.rewards import grading_of
from dcpo_async.limits import plain_log
from dcpo_async.monitoring.engines import vllm_metrics_path, write_report, write_vllm_metrics
from dcpo_async.protocol.messages import Welcome
from dcpo_async.protocol.session import ActorSession
from dcpo_async.protocol.transitions import ActorState
from dcpo_async.supervision import sign_of_progress
from dcpo_async.transport.key_files import load_peer_keys
from dcpo_async.transport.zmq_channel import connecting, connecting_to_relays

SIGN_SECONDS, SILENCE_SECONDS = 2.0, 45.0
"""A process that is stopped, or whose event loop hangs, is started again after the second, or its GPUs
would idle for ever."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits as `dcpo-actor` does."""
    plain_log()
    try:
        asyncio.run(_serve(_parser().parse_args(argv)))
    except DcpoError as error:
        # The launcher tells the last line of a log; of an error of several, that would say anything but why.
        print(f"dcpo-actor: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


async def _serve(options: argparse.Namespace) -> None:
    keys = load_peer_keys(options.keys) if options.keys else None
    connect = connecting(keys, insecure=options.insecure)
    link = LearnerLink(
        connect,
        options.learner,
        engine=options.engine,
        join_seconds=options.join_seconds,
        relay=options.relay,
        gpus=options.tensor_parallel if options.device == "gpu" else 0,
    )
    plan = WeightsPlan(
        folder_of=lambda run_id: cache_folder(run_id, options.weights_folder),
        connect_to_relay=connecting_to_relays(keys, insecure=options.insecure),
        ask=options.weights_from or "",
        in_place=not options.copy_weights,
    )
    made = list[Engine]()

    def make(welcome: Welcome) -> Engine:
        made.append(_engine_of(options, welcome, link))
        return made[-1]

    service = ActorService(
        link,
        make,
        lambda welcome: grading_of(welcome.grading, welcome.grading_by_source),
        WeightsFollower(link, options.ready_file.touch, plan),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.drain)
    report = options.ready_file.with_suffix(".report")

    def tell() -> None:
        write_report(report, report_of(link.session, made))
        if options.vllm_metrics:
            write_vllm_metrics(vllm_metrics_path(report))

    telling = asyncio.create_task(tell_signs(tell))
    try:
        await service.run()
    finally:
        telling.cancel()


async def tell_signs(tell: Callable[[], None] = lambda: None) -> None:
    """Say to the launcher that this process runs, until cancelled; whether its engine does is looked at in here.

    Args:
        tell: writes down what else the launcher may want to know; a full disk does not end the process.
    """
    while True:
        sign_of_progress("the engine process serves", SILENCE_SECONDS)
        with contextlib.suppress(OSError):
            tell()
        await asyncio.sleep(SIGN_SECONDS)


def report_of(session: ActorSession, engines: Sequence[Engine]) -> dict[str, Any]:
    """What /metrics tells of an engine; of one that is not made yet, that it starts."""
    load = engines[-1].load if engines else EngineLoad()
    return {
        "activity": "draining" if session.state is ActorState.DRAINING else session.activity,
        "weights_version": session.weights_version,
        "leases": session.num_working,
        "leases_generating": len(session.running_tokens),
        "responses_in_flight": session.num_responses,
        "response_capacity": session.capacity,
        "responses_running": load.num_running,
        "kv_cache_share": load.kv_cache_share,
        "tokens_generated": session.tokens_generated,
        "steps": load.steps,
        "preemptions": load.preemptions,
        "canary_refusals": session.canary_refusals,
    }


def _engine_of(options: argparse.Namespace, welcome: Welcome, link: LearnerLink) -> Engine:
    sampling, actor = welcome.sampling, welcome.actor
    folder = cache_folder(link.session.run_id, options.weights_folder)
    if options.relay:
        offer(options.offer, link.session.run_id, folder, link.weights_address)
    return make_engine(
        options,
        dtype=welcome.dtype,
        max_model_tokens=welcome.max_prompt_tokens + sampling.max_response_tokens,
        max_responses=actor.groups_in_flight * sampling.group_size,
        kv_after_update=actor.kv_after_update,
        start_folder=folder,
        keeps_metrics=options.vllm_metrics,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="actor.engine_process", description="One engine; dcpo-actor starts it.")
    parser.add_argument("--learner", required=True)
    add_engine_arguments(parser)
    add_weights_arguments(parser)
    parser.add_argument("--relay", default="", help="where this machine's relay is found")
    parser.add_argument("--offer", type=Path, help="file that tells the relay which cache to hand on")
    parser.add_argument("--join-seconds", type=float, default=300.0)
    parser.add_argument("--ready-file", type=Path, required=True, help="made once the engine holds its first weights")
    parser.add_argument("--vllm-metrics", action="store_true")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--insecure", action="store_true")
    return parser


if __name__ == "__main__":
    main()
