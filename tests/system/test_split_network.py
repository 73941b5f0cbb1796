"""Two machines as network namespaces, whose link is cut and healed.

Needs root and `ip` (iproute2), else it is skipped: `.venv/bin/python -m pytest tests/system/test_split_network.py`.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.services import Services
from tests.system.test_nodes import Machines, assert_trained_as

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(1800)]

FIRST = "10.77.0.1"


class Link:
    """Two namespaces with nothing but their loopbacks and a pair of virtual interfaces between them."""

    def __init__(self) -> None:
        self.names = [f"dcpo-{os.getpid()}-{number}" for number in (0, 1)]

    def make(self) -> None:
        """Raises CalledProcessError where this machine does not permit it."""
        first, second = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "dcpo0", "netns", first, "type", "veth", "peer", "name", "dcpo0", "netns", second)
        for name, address in zip(self.names, (FIRST, "10.77.0.2"), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "dcpo0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "dcpo0", "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def within(self, number: int) -> list[str]:
        """The words by which a process starts on one of the two."""
        return ["ip", "netns", "exec", self.names[number]]

    def set(self, state: str) -> None:
        """The interface of the second machine goes `up` or `down`."""
        ip("-n", self.names[1], "link", "set", "dcpo0", state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60)


@pytest.fixture
def link() -> Iterator[Link]:
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed (Debian: iproute2)")
    made = Link()
    try:
        made.make()
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    yield made
    made.remove()


def test_a_link_that_is_cut_and_a_machine_that_is_killed_leave_the_run_that_of_one_rank(
    tmp_path: Path, model: Path, steady_run: Services, link: Link
) -> None:
    with Services(tmp_path, model) as services:
        machines = Machines(services, zero_stage=2, host=FIRST)
        services.within = link.within(0)
        first, actor = machines.start_first(), machines.start_actor()
        services.within = link.within(1)
        second = machines.start_second()
        services.until("a checkpoint", lambda: "the checkpoint of step 4 stands" in first.log, 600)
        link.set("down")
        services.until("its being missed", lambda: "node 1 (second) says nothing for" in first.log, 300)
        services.until("the same there", lambda: "the ranks of this machine end" in second.log, 300)
        link.set("up")
        services.until("another", lambda: "the checkpoint of step 8 stands" in first.log, 600)
        second.signal(signal.SIGKILL)
        services.until("its being missed again", lambda: "node 1 (second) was heard of" in first.log, 300)
        assert (first.code, actor.code) == (None, None)
        second = machines.start_second()
        for service in (first, second, actor):
            services.ends_well(service, seconds=1200)
        assert "the run is finished" in second.log
        assert_trained_as(services, steady_run)
        # Started once more, both find nothing to do, and the second hears so from the first.
        services.within = link.within(0)
        first = machines.start_first()
        services.within = link.within(1)
        second = machines.start_second()
        for service in (first, second):
            services.ends_well(service, seconds=600)
        assert "the run was finished before" in second.log
