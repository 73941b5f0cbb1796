"""What an actor's session tells the service."""

from dataclasses import dataclass

from dcpo_async.protocol.messages import Ack, Reject, Welcome
from dcpo_async.records import Lease


@dataclass(frozen=True, slots=True)
class Joined:
    """The run's settings are known, or have changed; comes before any lease."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """A lease to work on."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class GroupAcknowledged:
    """A group needs no further care; anything but "accepted" deserves a line in the log."""

    ack: Ack


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A weights version newer than any heard of before."""

    weights_version: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The coordinator wants nothing to do with this actor; the session is over."""

    reject: Reject


@dataclass(frozen=True, slots=True)
class Dismissed:
    """The run takes no more groups; the session is over and nothing is wrong."""

    detail: str


@dataclass(frozen=True, slots=True)
class Complaint:
    """The coordinator could not read a message, or has no use for it; the session goes on."""

    detail: str


Event = Complaint | Joined | LeaseGranted | GroupAcknowledged | NewVersion | Refused | Dismissed
