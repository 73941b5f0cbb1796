"""What a service and all that it has started listens on, as the kernel lists it."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import psutil

LISTENS, ACCEPTS = "0A", "00010000"


def listeners(pid: int) -> list[tuple[IPv4Address | IPv6Address, int]]:
    """Address and port of every TCP socket on which a process or a descendant listens, as the kernel lists them."""
    sockets, places = inodes(pid), []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENS and words[9] in sockets:
                address, port = words[1].split(":")
                places.append((kernel_address(address), int(port, 16)))
    return places


def listening_files(pid: int) -> list[Path]:
    """Paths of the Unix sockets on which a process or a descendant listens; one without a name is left out."""
    sockets = inodes(pid)
    found = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    return [Path(words[7]) for words in found if words[3] == ACCEPTS and words[6] in sockets and len(words) > 7]


def inodes(pid: int) -> set[str]:
    """Of the sockets of a process and its descendants."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return {inode for process in processes for inode in socket_inodes(process.pid)}


def socket_inodes(pid: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
        except FileNotFoundError:
            continue
        if found:
            yield found[1]


def kernel_address(text: str) -> IPv4Address | IPv6Address:
    """`0100007F` is 127.0.0.1: words of four bytes in the machine's order."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    if len(words) == 1:
        return IPv4Address(words[0])
    address = IPv6Address(b"".join(words))
    return address.ipv4_mapped or address
