"""Fetches weights versions from a weight server, into a folder that all engine processes of a machine share."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from actor.weights.cache import Place, WeightsCache
from actor.weights.download import Download
from actor.weights.parent import Parent
from actor.weights.patching import patch_up, way_from
from actor.weights.server_link import ServerLink
from dcpo_async.errors import WeightsError
from dcpo_async.protocol.weight_messages import ManifestMessage
from dcpo_async.transport.interfaces import Dealer
from dcpo_async.weights.locks import machine_id
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.store import empty

log = logging.getLogger(__name__)


class WeightPuller:
    """Fetches versions; exactly one process of a machine downloads, the others share.

    Attributes:
        is_in_place: the last version stands in the learner's store, not in this machine's cache.
    """

    def __init__(
        self,
        channel: Dealer,
        cache_folder: Path,
        run_id: str,
        chunk_bytes: int,
        credit: int = 8,
        timeout_seconds: float = 30.0,
        peer: str = "the weight server",
        *,
        in_place: bool = True,
        parent: Parent | None = None,
    ) -> None:
        """Fetch nothing yet.

        Args:
            channel: to the weight server, for this puller alone.
            cache_folder: of this run alone, and of this user; made when it is needed.
            chunk_bytes, credit: their product may be asked for and not yet written; requests are for one stretch.
            timeout_seconds: silence after which a fetch gives up; requests are repeated within it.
            peer: what errors call the other end.
            in_place: versions that stand on this machine are used where they are, without a copy.
            parent: the relay that is asked for stretches before the server; manifests come from the server alone, since
                all trust rests on them. Closed with this puller.
        """
        self._link = ServerLink(channel, run_id, timeout_seconds, peer)
        # A process that downloads gives up after one time-out of silence; twice that leaves it time to let go.
        self._cache = WeightsCache(cache_folder, 2 * timeout_seconds)
        self._parent = parent
        self._downloading = Download(self._link, chunk_bytes * credit, self._cache.report_progress, parent)
        self._in_place = in_place
        self.is_in_place = False
        self._bases: dict[int, int] = {}
        self._one_at_a_time = asyncio.Lock()

    @property
    def bytes_downloaded(self) -> int:
        """Bytes of all answers so far, manifests included."""
        return self._link.bytes_received + (self._parent.bytes_received if self._parent is not None else 0)

    @property
    def bytes_from_origin(self) -> int:
        """Those of them that the server sent."""
        return self._link.bytes_received

    async def fetch(self, version: int = 0) -> tuple[Path, Manifest]:
        """The folder of a version, every byte checked, and its manifest; it stays until `prune` or `close`.

        An adapter's folder has the frozen weights that it belongs to beside it (`places.base_folder`).

        Args:
            version: 0 for the newest.

        Raises:
            WeightsError: there is no such version, its bytes do not match, there is no room for it, or the server
                or the process that downloads it fell silent; asking again later may help.
            RefusedError: the server serves another run.
            ProtocolError: the server sent something that the protocol does not allow.
        """
        async with self._one_at_a_time:
            found = [await self._link.ask_for_manifest(version)]
            manifest = found[0][0]
            if manifest.base_version is not None:
                found.insert(0, await self._link.ask_for_manifest(manifest.base_version))
                self._bases[manifest.weights_version] = manifest.base_version
            places = [self._place(message) for _, message in found]
            manifests = [each for each, _ in found]
            folder = await self._hold_in_place(manifests, places)
            self.is_in_place = folder is not None
            if folder is None:
                for each in manifests:
                    folder = await self._cache.hold(each, partial(self._download, each))
            assert folder is not None
            return folder, manifest

    async def newest(self) -> Manifest:
        """The manifest of the newest version; raises as `fetch` does."""
        async with self._one_at_a_time:
            return (await self._link.ask_for_manifest(0))[0]

    def prune(self, keep: Collection[int]) -> list[int]:
        """Let go of all versions but these, and remove those that no process of this machine uses.

        Frozen weights that kept ones belong to are kept too. Returns the versions removed. Freeing gigabytes takes a
        moment: call it in a thread.
        """
        self._bases = {version: base for version, base in self._bases.items() if version in keep}
        return self._cache.prune({*keep, *self._bases.values()})

    def close(self) -> None:
        """Let go of every version and of the parent; the channel stays open."""
        self._cache.close()
        if self._parent is not None:
            self._parent.close()

    async def _hold_in_place(self, manifests: Sequence[Manifest], places: Sequence[Place | None]) -> Path | None:
        """Hold all where they stand, and return the last one's folder; None unless that is safe, side by side."""
        folder = None
        for manifest, place in zip(manifests, places, strict=True):
            held = await self._cache.hold_in_place(place, manifest) if place is not None else None
            if held is None or (folder is not None and held.parent != folder.parent):
                return None
            folder = held
        return folder

    def _place(self, message: ManifestMessage) -> Place | None:
        """Where a version stands, if that is on this machine."""
        is_here = self._in_place and message.folder.startswith("/") and "\0" not in message.folder
        if not is_here or not message.machine or message.machine != machine_id():
            return None
        return Place(Path(message.folder), message.device, message.inode)

    async def _download(self, manifest: Manifest, writing: Path) -> None:
        """Fill a folder in the cheapest way: by patches from a version at hand, else whole."""
        if (way := way_from(self._cache.bases(), manifest)) is not None:
            version, report = manifest.weights_version, self._cache.report_progress
            try:
                await patch_up(way, manifest, writing, self._downloading, report)
            except (WeightsError, OSError) as error:
                log.warning("version %d is fetched whole, not by patches from %d: %s", version, way.version, error)
                await asyncio.to_thread(empty, writing)
                report()
            else:
                log.info("version %d: %d patches from version %d", version, len(way.patches), way.version)
                return
        await self._downloading.fetch(writing, manifest.weights_version, manifest.files)
