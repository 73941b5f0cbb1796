"""Keys for tests: a learner's, and those of peers that it admits."""

from pathlib import Path

from dcpo_async.transport.admission import Role
from dcpo_async.transport.key_files import CurveClient, load_peer_keys, write_peer_keys, write_server_keys
from dcpo_async.transport.zmq_channel import new_pair


def learner_keys(folder: Path) -> Path:
    write_server_keys(folder, new_pair())
    return folder


def admit(folder: Path, name: str, role: Role = "actor") -> CurveClient:
    """Keys of a new peer, which is admitted."""
    return load_peer_keys(write_peer_keys(folder, name, role, new_pair()))
