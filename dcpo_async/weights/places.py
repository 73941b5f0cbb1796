"""Where things lie in a weight store, and in a machine's cache, which is laid out like one."""

import re
from pathlib import Path

UNFINISHED = ".unfinished-"


def version_folder(store_folder: Path, weights_version: int) -> Path:
    """Where a version stands: v00000012 for 12."""
    return store_folder / f"v{weights_version:08d}"


def versions(store_folder: Path) -> list[int]:
    """The versions that stand, oldest first; none where the store does not exist yet."""
    if not store_folder.is_dir():
        return []
    return sorted(int(entry.name[1:]) for entry in store_folder.iterdir() if _is_version_name(entry.name))


def newest_version(store_folder: Path) -> int | None:
    """The highest version that stands, None in an empty store."""
    return max(versions(store_folder), default=None)


def base_folder(folder: Path, base_version: int | None) -> Path:
    """Where the frozen weights of a version lie: beside an adapter, and in the folder of any other version itself."""
    return folder if base_version is None else version_folder(folder.parent, base_version)


def patches_folder(store_folder: Path) -> Path:
    """Where the patches of a store or a cache lie, under the names that their entries have."""
    return store_folder / "patches"


def _is_version_name(name: str) -> bool:
    return re.fullmatch(r"v\d{8,}", name) is not None and name == f"v{int(name[1:]):08d}"
