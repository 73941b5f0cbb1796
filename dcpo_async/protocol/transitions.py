"""What may happen in which state of an actor's session, and what follows: one table."""

from collections.abc import Mapping
from enum import Enum

from dcpo_async.errors import ProtocolError
from dcpo_async.protocol.messages import Ack, LeaseMessage, Message, Reject, VersionMessage, Welcome


class ActorState(Enum):
    """Where an actor stands with the coordinator."""

    JOINING = "joining"
    WORKING = "working"
    REJOINING = "rejoining"
    DRAINING = "draining"
    REFUSED = "refused"
    ENDED = "ended"


class ActorInput(Enum):
    """What can happen to an actor's session."""

    WELCOME = "welcome"
    LEASE = "lease"
    ACK = "ack"
    VERSION = "version"
    REJOIN = "reject: rejoin"
    STOP = "reject: stopping"
    REFUSE = "reject: protocol_version, run_id, role or unsound"
    COMPLAIN = "reject: invalid"
    DISMISS = "reject: draining"
    SILENCE = "nothing heard for silence_seconds"
    DRAIN = "drain requested"
    EMPTIED = "nothing held"
    DEADLINE = "deadline passed"


_A, _AI = ActorState, ActorInput
ACTOR_TRANSITIONS: Mapping[ActorState, Mapping[ActorInput, ActorState]] = {
    _A.JOINING: {
        _AI.WELCOME: _A.WORKING,
        _AI.VERSION: _A.JOINING,
        _AI.REJOIN: _A.JOINING,
        _AI.STOP: _A.JOINING,
        _AI.REFUSE: _A.REFUSED,
        _AI.COMPLAIN: _A.JOINING,
        _AI.DISMISS: _A.ENDED,
        _AI.DRAIN: _A.DRAINING,
        _AI.DEADLINE: _A.ENDED,
    },
    _A.WORKING: {
        _AI.WELCOME: _A.WORKING,
        _AI.LEASE: _A.WORKING,
        _AI.ACK: _A.WORKING,
        _AI.VERSION: _A.WORKING,
        _AI.REJOIN: _A.REJOINING,
        _AI.STOP: _A.REJOINING,
        _AI.REFUSE: _A.REFUSED,
        _AI.COMPLAIN: _A.WORKING,
        _AI.DISMISS: _A.ENDED,
        _AI.SILENCE: _A.REJOINING,
        _AI.DRAIN: _A.DRAINING,
    },
    _A.REJOINING: {
        _AI.WELCOME: _A.WORKING,
        _AI.LEASE: _A.REJOINING,
        _AI.ACK: _A.REJOINING,
        _AI.VERSION: _A.REJOINING,
        _AI.REJOIN: _A.REJOINING,
        _AI.STOP: _A.REJOINING,
        _AI.REFUSE: _A.REFUSED,
        _AI.COMPLAIN: _A.REJOINING,
        _AI.DISMISS: _A.ENDED,
        _AI.DRAIN: _A.DRAINING,
        _AI.DEADLINE: _A.ENDED,
    },
    _A.DRAINING: {
        _AI.WELCOME: _A.DRAINING,
        _AI.LEASE: _A.DRAINING,
        _AI.ACK: _A.DRAINING,
        _AI.VERSION: _A.DRAINING,
        _AI.REJOIN: _A.DRAINING,
        _AI.STOP: _A.DRAINING,
        _AI.REFUSE: _A.REFUSED,
        _AI.COMPLAIN: _A.DRAINING,
        _AI.DISMISS: _A.ENDED,
        _AI.SILENCE: _A.DRAINING,
        _AI.DRAIN: _A.DRAINING,
        _AI.EMPTIED: _A.ENDED,
        _AI.DEADLINE: _A.ENDED,
    },
    _A.REFUSED: {_AI.DRAIN: _A.REFUSED},
    _A.ENDED: {_AI.DRAIN: _A.ENDED},
}


def next_state(state: ActorState, happened: ActorInput) -> ActorState:
    """The state that follows; raises ProtocolError when this must not happen in this state."""
    following = ACTOR_TRANSITIONS[state].get(happened)
    if following is None:
        allowed = ", ".join(repr(other.value) for other in ACTOR_TRANSITIONS[state])
        raise ProtocolError(f"{happened.value!r} in a session that is {state.value}; allowed are {allowed}")
    return following


def actor_input(message: Message) -> ActorInput:
    """What a message of the coordinator is to an actor; raises ProtocolError where it is not for one."""
    if isinstance(message, Reject):
        reasons = {
            "rejoin": ActorInput.REJOIN,
            "stopping": ActorInput.STOP,
            "draining": ActorInput.DISMISS,
            "invalid": ActorInput.COMPLAIN,
        }
        return reasons.get(message.reason, ActorInput.REFUSE)
    inputs: Mapping[type[Message], ActorInput] = {
        Welcome: ActorInput.WELCOME,
        LeaseMessage: ActorInput.LEASE,
        Ack: ActorInput.ACK,
        VersionMessage: ActorInput.VERSION,
    }
    happened = inputs.get(type(message))
    if happened is None:
        raise ProtocolError(f"{message.kind} is not a message for an actor")
    return happened
