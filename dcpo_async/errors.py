"""Every exception that dcpo-async raises: one class per thing a caller can do something about."""


class DcpoError(Exception):
    """Root of all errors of this project; the message says what was found, what is allowed and what to do."""

    exit_code = 1


class ConfigError(DcpoError):
    """A setting, path or data set given by the user cannot be used; the services exit with code 2."""

    exit_code = 2


class DatasetError(ConfigError):
    """A problem set is missing, empty or malformed."""


class ProtocolError(DcpoError):
    """A peer sent something that the protocol does not allow."""


class MalformedError(ProtocolError):
    """A message of a known kind that is not as its kind must be; `lease` is (position, attempt) of a group."""

    def __init__(self, message: str, *, kind: str, lease: tuple[int, int] | None) -> None:
        super().__init__(message)
        self.kind, self.lease = kind, lease


class FloodError(ProtocolError):
    """A peer sent more than its share of messages: `num_dropped` were not looked at."""

    def __init__(self, message: str, *, num_dropped: int) -> None:
        super().__init__(message)
        self.num_dropped = num_dropped


class RevokedError(ProtocolError):
    """A peer's key is no longer admitted: its connection is closed, and it is not answered."""


class RoleError(ProtocolError):
    """A peer sent what the role of its key does not allow."""


class RefusedError(ConfigError):
    """The learner refused this actor for good: other protocol version, other run, or no key."""


class UnreachableError(ConfigError):
    """A peer did not answer within the stated deadline."""


class PeerLostError(DcpoError):
    """A message could not be routed, or the peer fell silent."""


class WeightsError(DcpoError):
    """A weights version is missing, incomplete or does not match its digests."""


class NotHereError(WeightsError):
    """Whoever was asked has not got a version, or no longer; others may have it."""


class UnusableError(WeightsError):
    """Versions of the weights cannot be kept or used on this machine; asking or starting again does not help."""

    exit_code = 2


class NoRoomError(UnusableError):
    """A version does not fit where versions are kept on this machine; other processes of it may yet let go of one."""


class EngineError(DcpoError):
    """The generation engine failed or died."""


class UnsoundError(EngineError):
    """The learner refuses what this engine makes; however long it has worked, that is a failure."""

    exit_code = 3


class OutdatedError(DcpoError):
    """The learner's settings need another engine than this one: a new start, at once, makes it."""

    exit_code = 4


class CanaryError(EngineError):
    """An engine's log-probs of a version's canary are not the trainer's: it does not hold those weights."""


class LedgerError(ConfigError):
    """The ledger on disk is in use, of another run, damaged, or cannot be written; starting again does not help."""


class ReleasedError(LedgerError):
    """The arrays of a group were deleted, since every retained checkpoint contains it; its rows stand."""


class TrainerError(DcpoError):
    """A trainer rank failed or fell behind its deadline."""


class UnansweredError(TrainerError):
    """The coordinator has not answered within a deadline."""


class AlgorithmError(DcpoError, ValueError):
    """A function of the algorithm was given numbers or shapes for which its equation is not defined."""


class GradingError(DcpoError):
    """The grading pool is closed, or its workers cannot run."""


class VersionMismatchError(ProtocolError):
    """A peer speaks another protocol version; `peer_version` and the `kind` of its message serve an answer."""

    def __init__(self, message: str, *, peer_version: int, kind: str) -> None:
        super().__init__(message)
        self.peer_version = peer_version
        self.kind = kind


class CheckpointError(ConfigError):
    """A checkpoint is damaged, of another layout of ranks, or cannot be written; starting again does not help."""


class PromptError(EngineError):
    """The generation engine is well but cannot answer this one prompt."""
