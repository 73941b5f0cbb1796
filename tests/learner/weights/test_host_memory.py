"""What is left of a machine's memory, and of a container's."""

from pathlib import Path

import pytest

from learner.weights.host_memory import available, require

GIB = 1 << 30


def machine(folder: Path, limit: str) -> tuple[Path, Path]:
    """16 GiB available; a container that uses 6 GiB, 3 of them page cache, of which 1 is shared memory."""
    meminfo = folder / "meminfo"
    meminfo.write_text(f"MemTotal: 33554432 kB\nMemAvailable: {16 << 20} kB\n")
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{6 * GIB}\n")
    (folder / "memory.stat").write_text(f"anon {3 * GIB}\nfile {3 * GIB}\nshmem {GIB}\n")
    return meminfo, folder


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    assert available(*machine(tmp_path, "max")) == 16 * GIB


def test_page_cache_gives_way_and_shared_memory_does_not(tmp_path: Path) -> None:
    assert available(*machine(tmp_path, str(8 * GIB))) == 4 * GIB


def test_a_limit_above_the_machine_changes_nothing(tmp_path: Path) -> None:
    assert available(*machine(tmp_path, str(64 * GIB))) == 16 * GIB


def test_more_than_is_left_is_refused() -> None:
    require(1)
    with pytest.raises(MemoryError, match="are left"):
        require(available() + (1 << 40))
