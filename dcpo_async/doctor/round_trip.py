"""Messages that go there and back over real sockets: on this machine with the run's keys, and to a learner."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from dcpo_async.doctor.findings import Finding, error, said, warning
from dcpo_async.errors import DcpoError, PeerLostError, ProtocolError, VersionMismatchError
from dcpo_async.protocol.messages import Envelope, Heartbeat, Message, Reject
from dcpo_async.transport.admission import Admission, AdmittedFolder, KeyHolder
from dcpo_async.transport.interfaces import Dealer, Router
from dcpo_async.transport.key_files import CurveClient, CurveServer, load_peer_keys, load_server_keys
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel, new_pair

ANSWER_SECONDS = 5.0
MAX_BYTES = 1 << 20
BEAT = Heartbeat(held=(), weights_version=0, tokens_generated=0, groups_in_flight=0)
"""Of a session that no learner knows: it is answered by `rejoin`, and changes nothing there."""
NEW_KEYS = "`dcpo keygen FOLDER`, and `dcpo keygen FOLDER --actor NAME` for each machine"


def loopback(keys: Path | None, seconds: float = ANSWER_SECONDS) -> Iterator[Finding]:
    """Whether a message goes there and back on this machine, with the learner's keys where there are any.

    Args:
        keys: the learner's folder of keys; a peer is admitted for this one message, and in memory alone.
    """
    try:
        server = load_server_keys(keys) if keys else None
        asyncio.run(_there_and_back(server, seconds))
    except DcpoError as failure:
        if keys is None:
            yield error(
                f"no message goes from this machine to itself: {failure}",
                "is the interface lo up, does a firewall or a proxy stand before 127.0.0.1?",
            )
        else:
            yield error(
                f"no message comes through by the keys in {keys}: server.public is not of server.secret",
                f"restore both of one backup; else {NEW_KEYS}",
            )


def peers(folder: Path) -> Iterator[Finding]:
    """Whether the files of peers that wait in the learner's folder let them in."""
    server, admitted = load_server_keys(folder), AdmittedFolder(folder / "admitted")
    for file in sorted((folder / "peers").glob("*.keys")):
        try:
            keys = load_peer_keys(file)
        except DcpoError as failure:
            yield said("error", str(failure), NEW_KEYS)
            continue
        holder = admitted.holder_of(keys.public.decode())
        renew = f"`dcpo revoke {folder} {keys.name}`, then `dcpo keygen {folder} --{keys.role} {keys.name}`"
        if keys.server_public != server.public:
            yield error(f"{file} is for another learner than that of {folder}", renew)
        elif holder is None:
            yield error(f"the key in {file} is not admitted", renew)
        elif holder.role != keys.role:
            yield error(f"the key in {file} is {keys.role}'s, and admitted as {holder.role}'s", renew)


def answered(address: str, keys: CurveClient | None, seconds: float = ANSWER_SECONDS) -> Iterator[Finding]:
    """Whether the learner at an address answers a message of this side, by this side's key and its protocol."""
    try:
        answer = asyncio.run(_answer_of(address, keys, seconds))
    except VersionMismatchError as failure:
        yield error(f"the learner at {address}: {failure}", "install one release on all machines, the learner's first")
    except PeerLostError as failure:
        if keys is None:
            yield error(f"the learner at {address}: {failure}", "its log says why; `dcpo doctor --run` on its machine")
        else:
            yield error(
                f"the learner at {address} does not let in the key of {keys.role} {keys.name}",
                "is the file of this learner, was the key revoked? Its log has a line for each key that it refuses; "
                f"`dcpo keygen FOLDER --{keys.role} NAME` there makes another",
            )
    except ProtocolError as failure:
        yield error(f"the learner at {address} says what cannot be read: {failure}", "is the port right?")
    else:
        yield from _judged(address, keys, answer, seconds)


def _judged(address: str, keys: CurveClient | None, answer: Message | None, seconds: float) -> Iterator[Finding]:
    if answer is None:
        yield error(
            f"the learner at {address} takes messages and answers none within {seconds:g} s",
            "it hangs, or has been stopped: `dcpo doctor --run FOLDER` on its machine",
        )
    elif not isinstance(answer, Reject) or answer.reason == "rejoin":
        if keys is not None and keys.role == "evaluator":
            yield warning(
                f"the key of {keys.name} is an evaluator's: `dcpo eval --learner` goes with it, dcpo-actor does not",
                "`dcpo keygen FOLDER --actor NAME` makes one for actors",
            )
    elif answer.reason in ("draining", "stopping"):
        yield warning(f"the learner at {address} is {answer.reason}: {answer.detail}", "wait until it is up again")
    else:
        advice = "`dcpo keygen FOLDER --actor NAME` makes keys for actors" if answer.reason == "role" else "see its log"
        yield said("error", f"the learner at {address} refuses this side ({answer.reason}): {answer.detail}", advice)


async def _answer_of(address: str, keys: CurveClient | None, seconds: float) -> Message | None:
    # Nothing secret is said, so that a network where all are trusted needs no word for it.
    dealer = DealerChannel(address, MAX_BYTES, keys, insecure=True, send_timeout_seconds=seconds)
    try:
        return await _asked(dealer, seconds)
    finally:
        dealer.close()


async def _asked(dealer: Dealer, seconds: float) -> Message | None:
    await dealer.send(Envelope(BEAT))
    answer = await dealer.receive(seconds)
    return None if answer is None else answer.message


async def _there_and_back(server: CurveServer | None, seconds: float) -> None:
    """Raises PeerLostError where nothing comes through."""
    public, secret = new_pair()
    mine = theirs = None
    if server is not None:
        admission = Admission([KeyHolder("doctor", "actor", public.decode())])
        theirs = CurveServer(server.public, server.secret, admission)
        mine = CurveClient("doctor", "actor", public, secret, server.public)
    router = RouterChannel("tcp://127.0.0.1:0", MAX_BYTES, theirs)
    dealer = DealerChannel(f"tcp://127.0.0.1:{router.port}", MAX_BYTES, mine, send_timeout_seconds=seconds)
    try:
        answering = asyncio.create_task(_answer_one(cast(Router, router), seconds))
        answer = await _asked(dealer, seconds)
        await answering
        if answer is None:
            raise PeerLostError(f"no answer came within {seconds:g} s")
    finally:
        dealer.close()
        router.close()


async def _answer_one(router: Router, seconds: float) -> None:
    until = time.monotonic() + 2 * seconds
    while time.monotonic() < until:
        for received in await router.receive(0.2):
            await router.send(received.peer, Envelope(Reject(reason="rejoin", detail="there and back")))
            return
