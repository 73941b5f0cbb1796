"""The process that publishes: takes the newest state from the shared buffers, writes it as a version, and says so.

The ranks of the trainer never wait for it. States that are overtaken while a version is written are left out.
"""

import argparse
import asyncio
import errno
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from dcpo_async.config import RunConfig
from dcpo_async.durable import DISK_IS_FULL
from dcpo_async.errors import DcpoError, UnansweredError, WeightsError
from dcpo_async.limits import plain_log
from dcpo_async.processes import until_told
from dcpo_async.protocol.trainer_messages import Published
from dcpo_async.run_folder import AdapterFolders, RunFolder, lacking_room
from dcpo_async.supervision import sign_of_progress
from dcpo_async.transport.zmq_channel import DealerChannel
from dcpo_async.weights.store import newest_base, prune, remove_unfinished, write_snapshot
from dcpo_async.weights.tensor_file import WEIGHTS_NAME, map_tensors
from learner.trainer.coordinator_link import CoordinatorLink
from learner.weights.buffers import Offer, SharedBuffer, SharedBuffers

log = logging.getLogger("publisher")

THREADS = min(16, max(1, len(os.sched_getaffinity(0)) // 2))
"""Encode the patch; the other cores are the training's."""
IDLE_SECONDS = 30.0
ROOM_SECONDS, QUOTA_SECONDS = 10.0, 60.0
"""Until the next attempt where the disk lacks room, and where it was found to be full in the midst of a version."""
GRANT_SECONDS = 10.0
"""A coordinator that has not answered by then is held up: a state without a number is let go of meanwhile."""
LEAST_BYTES_PER_SECOND = 10e6
"""A disk that takes less while a version is written is taken for one that hangs."""
POLL_SECONDS = 0.01
"""Two words of shared memory are looked at this often: no offer can be lost on its way, whoever starts again."""


class Publisher:
    """Writes versions to the run's weight store, whose only writer it is."""

    def __init__(self, config: RunConfig, link: CoordinatorLink, buffers: Sequence[Path]) -> None:
        self._folder, self._keep_versions = RunFolder(config.folder), config.lag.keep_versions
        self._adapter = None if config.adapter.rank is None else AdapterFolders(config.folder)
        self._base: int | None = None
        self._link, self._shared = link, SharedBuffers(buffers)

    async def run(self) -> None:
        """Publish whatever is offered, until cancelled.

        Raises:
            WeightsError: a version cannot be written, for another reason than want of room.
            TrainerError: the coordinator does not answer.
        """
        # A publisher that was killed may have left more than the disk has room for beside a new version.
        remove_unfinished(self._folder.weights)
        self._prune()
        while True:
            sign_of_progress("the publisher looks for a new state", IDLE_SECONDS)
            try:
                is_news = await self.publish_newest()
            except WeightsError as error:
                if not _is_full_disk(error.__cause__):
                    raise
                # No look had shown it, as that of a quota; the state stays where it is, or is overtaken.
                log.error("%s; the newest weights are published once there is room", error)
                await self._wait(QUOTA_SECONDS)
            else:
                await asyncio.sleep(0 if is_news else POLL_SECONDS)

    async def publish_newest(self) -> bool:
        """Publish the newest state that is not published yet; False where there is none, or not yet room for it."""
        with self._shared.newest() as found:
            if found is None:
                return False
            offer, buffer = found
            lacks = lacking_room(self._folder.path, beside=buffer.schema.layout.num_bytes)
            if not lacks and await self._publish(offer, buffer):
                return True
        # Whoever starts anew meanwhile has the buffers.
        if lacks:
            form = "the disk lacks %.1f MB for the weights of step %d, which wait for room"
            log.error(form, lacks / 1e6, offer.step)
        await self._wait(ROOM_SECONDS)
        return False

    async def _publish(self, offer: Offer, buffer: SharedBuffer) -> bool:
        """Publish a state; False where the coordinator, held up itself, has no number for it."""
        schema = buffer.schema
        try:
            base_version = await self._base_version(self._adapter, offer.step) if self._adapter is not None else None
            version = await self._link.ask_for_version(offer.step, GRANT_SECONDS)
        except UnansweredError:
            return False
        write = partial(
            write_snapshot,
            self._folder.weights,
            weights_version=version,
            run_id=self._link.run_id,
            incarnation=self._link.incarnation,
            step=offer.step,
            tensors=schema.tensors(buffer.state),
            tied=schema.tied,
            skeleton_folder=(self._adapter or self._folder).skeleton,
            canary=offer.canary,
            threads=THREADS,
            base_version=base_version,
        )
        num_bytes = schema.layout.num_bytes
        words = f"the publisher writes the {num_bytes} bytes of step {offer.step} as version {version}"
        sign_of_progress(words, IDLE_SECONDS + num_bytes / LEAST_BYTES_PER_SECOND)
        manifest = await asyncio.to_thread(write)
        message = Published(
            weights_version=version,
            step=offer.step,
            seconds=time.monotonic() - offer.offered_at,
            num_bytes=sum(file.num_bytes for file in manifest.files),
            patch_bytes=manifest.patches[-1].num_bytes if manifest.patches else 0,
            num_skipped=self._shared.num_skipped(offer),
        )
        # In this order: a version that is told of twice does no harm, one that nobody hears of would be waited for; and
        # a trainer that ends waits for the mark, so that nothing is being removed then.
        await self._announce(message)
        await asyncio.to_thread(self._prune)
        self._shared.mark_published(offer)
        log.info("version %d of step %d stands after %.3f s", version, offer.step, message.seconds)
        return True

    async def _announce(self, message: Published) -> None:
        """Have the coordinator hear of a version; what is superfluous by then may be all that its disk lacks."""
        while True:
            try:
                await self._link.announce(message, GRANT_SECONDS)
            except UnansweredError:
                await asyncio.to_thread(self._prune)
            else:
                return

    async def _base_version(self, adapter: AdapterFolders, step: int) -> int:
        """The version of the model that the adapter is for; it is written where the store has none of its type.

        It has a number and is never announced: nothing is sampled from it alone.
        """
        if self._base is None:
            tensors = map_tensors(adapter.base / WEIGHTS_NAME)
            self._base = await asyncio.to_thread(newest_base, self._folder.weights, tensors)
            if self._base is None:
                self._base = await self._write_base(adapter, tensors, step)
        return self._base

    async def _write_base(self, adapter: AdapterFolders, tensors: Mapping[str, Tensor], step: int) -> int:
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if lacks := lacking_room(self._folder.path, beside=num_bytes):
            detail = f"the disk lacks {lacks / 1e6:.1f} MB for the model below the adapter"
            raise WeightsError(detail) from OSError(errno.ENOSPC, detail)
        version = await self._link.ask_for_version(step, GRANT_SECONDS)
        words = f"the publisher writes the {num_bytes} bytes of the model below the adapter as version {version}"
        sign_of_progress(words, IDLE_SECONDS + num_bytes / LEAST_BYTES_PER_SECOND)
        write = partial(
            write_snapshot,
            self._folder.weights,
            weights_version=version,
            run_id=self._link.run_id,
            incarnation=self._link.incarnation,
            step=step,
            tensors=tensors,
            skeleton_folder=adapter.base,
            with_patch=False,
            is_base=True,
        )
        await asyncio.to_thread(write)
        return version

    async def _wait(self, seconds: float) -> None:
        sign_of_progress("the publisher waits for room on the disk", seconds + IDLE_SECONDS)
        # Whoever read a version that was to go has perhaps let go of it.
        await asyncio.to_thread(self._prune)
        await asyncio.sleep(seconds)

    def _prune(self) -> None:
        prune(self._folder.weights, self._keep_versions)


def _is_full_disk(cause: BaseException | None) -> bool:
    return isinstance(cause, OSError) and cause.errno in DISK_IS_FULL


async def _run(config: RunConfig, options: argparse.Namespace) -> None:
    channel = DealerChannel(options.coordinator, config.network.max_message_bytes)
    link = CoordinatorLink(channel, options.coordinator, options.run_id, options.incarnation, "the publisher")
    try:
        # Told to end, what is being written is finished or removed by its thread, which asyncio waits for.
        await until_told(Publisher(config, link, options.buffers).run())
    finally:
        channel.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; runs until it is ended, exits 1 on a failure."""
    plain_log()
    parser = argparse.ArgumentParser(prog="learner.publisher", description="Publishes the weights of a trainer.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration, JSON")
    parser.add_argument("--coordinator", required=True, help="address of the coordinator")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--incarnation", type=int, required=True, help="start of the learner that this is of")
    parser.add_argument("--buffers", type=Path, nargs=2, required=True, help="shared publication buffers")
    options = parser.parse_args(argv)
    try:
        asyncio.run(_run(RunConfig.model_validate_json(options.config.read_bytes()), options))
    except DcpoError as error:
        print(f"dcpo-learner: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
