"""The files of a store as they are handed out: straight from their pages."""

import mmap
import os
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcpo_async.errors import WeightsError
from dcpo_async.protocol.weight_messages import ChunkWant
from dcpo_async.weights.manifest import Manifest, read_manifest
from dcpo_async.weights.places import newest_version, patches_folder, version_folder, versions

MAX_MAPS = 16
"""Files whose maps are kept."""


class Shelf:
    """Reads the store; manifests and maps of files are kept, since a version never changes."""

    def __init__(self, store_folder: Path) -> None:
        self._store_folder = store_folder
        self.manifest = lru_cache(maxsize=8)(self._read_manifest)
        self._files = MappedFiles()

    def newest(self) -> int:
        """The newest version that can be sampled from: frozen weights alone are none. Raises WeightsError."""
        for version in reversed(versions(self._store_folder)):
            if not self.manifest(version).is_base:
                return version
        raise WeightsError("no weights version is published yet; ask again")

    def folder(self, weights_version: int) -> Path:
        """Where a version stands on this machine."""
        return version_folder(self._store_folder, weights_version).resolve()

    def chunk(self, want: ChunkWant) -> NDArray[np.uint8]:
        """Bytes of a file or a patch that the manifest lists, in the pages of its file; raises WeightsError."""
        path, num_bytes = self._listed(want)
        if want.offset + want.num_bytes > num_bytes:
            raise WeightsError(f"{want.file} has {num_bytes} bytes; asked for {want.num_bytes} from {want.offset} on")
        try:
            return self._files.read(path, num_bytes, want.offset, want.num_bytes)
        except OSError as error:
            raise WeightsError(f"{want.file} of version {want.weights_version} is gone: {error.strerror}") from error

    def drop_removed(self) -> None:
        """Let go of files that were removed, so that their disk space is free."""
        self._files.drop_removed()

    def _listed(self, want: ChunkWant) -> tuple[Path, int]:
        manifest = self.manifest(want.weights_version)
        for entry in manifest.files:
            if entry.name == want.file:
                return version_folder(self._store_folder, want.weights_version) / want.file, entry.num_bytes
        for patch in manifest.patches:
            if patch.name == want.file:
                return patches_folder(self._store_folder) / want.file, patch.num_bytes
        raise WeightsError(f"version {want.weights_version} has no file {want.file!r}")

    def _read_manifest(self, weights_version: int) -> Manifest:
        folder = version_folder(self._store_folder, weights_version)
        if not folder.is_dir():
            newest = newest_version(self._store_folder)
            raise WeightsError(f"version {weights_version} is not in the store; the newest is {newest}")
        return read_manifest(folder)


class MappedFiles:
    """Files that are read again and again, through maps that are kept."""

    def __init__(self) -> None:
        self._maps: OrderedDict[Path, _MappedFile] = OrderedDict()

    def read(self, path: Path, num_bytes: int, offset: int, length: int) -> NDArray[np.uint8]:
        """Bytes in a file's pages; raises WeightsError where it is not `num_bytes` long, OSError where it is gone."""
        try:
            return self._mapped(path, num_bytes).read(offset, length)
        except OSError:
            self._maps.pop(path, None)
            raise

    def drop_removed(self) -> None:
        """Let go of files that were removed, so that their disk space is free."""
        for path in [path for path in self._maps if not path.exists()]:
            del self._maps[path]

    def _mapped(self, path: Path, num_bytes: int) -> "_MappedFile":
        """A file's map, made anew where another file stands under its name by now."""
        found = path.stat()
        mapped = self._maps.pop(path, None)
        if found.st_size != num_bytes:
            # What is beyond the end of a file cannot be read: the process would be killed.
            raise WeightsError(f"{path} has {found.st_size} bytes, its manifest says {num_bytes}")
        if mapped is None or mapped.identity != (found.st_dev, found.st_ino):
            mapped = _MappedFile(path)
        self._maps[path] = mapped
        while len(self._maps) > MAX_MAPS:
            self._maps.popitem(last=False)
        return mapped


class _MappedFile:
    """A file's pages: what is sent is not copied before; they stay for as long as anything is on its way."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            self.identity = (found.st_dev, found.st_ino)
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)

    def read(self, offset: int, num_bytes: int) -> NDArray[np.uint8]:
        """Bytes that the disk begins to read, where they are not in memory, before they are sent."""
        start = offset - offset % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, start, offset + num_bytes - start)
        return self._bytes[offset : offset + num_bytes]
