"""What ranks of this machine and of others reach as one: an ipc socket, and one over TCP that asks for keys."""

import asyncio
import contextlib
from dataclasses import replace

from dcpo_async.errors import PeerLostError
from dcpo_async.protocol.messages import Envelope, Message, Reject
from dcpo_async.transport.interfaces import Received, Router
from learner.nodes.desk import NodeDesk

_HERE, _ELSEWHERE = b"h", b"e"


class RankRouter:
    """Joins the two, and has the launchers of other machines answered by their desk.

    Args:
        here: for ranks of this machine.
        elsewhere: for those of others, and their launchers; it tells whose key each message came by.
        desk: of the launchers.
        run_id, incarnation: go with what launchers hear.
    """

    def __init__(self, here: Router, elsewhere: Router, desk: NodeDesk, run_id: str, incarnation: int) -> None:
        self._sides = {_HERE: here, _ELSEWHERE: elsewhere}
        self.refusals = elsewhere.refusals
        self._desk, self._run_id, self._incarnation = desk, run_id, incarnation
        self._receiving: dict[bytes, asyncio.Task[list[Received]]] = {}

    @property
    def port(self) -> int:
        """TCP port of ranks of other machines."""
        return self._sides[_ELSEWHERE].port

    async def receive(self, timeout_seconds: float) -> list[Received]:
        """Everything that ranks have sent; empty when nothing came within the timeout."""
        for side, router in self._sides.items():
            if side not in self._receiving:
                self._receiving[side] = asyncio.create_task(router.receive(timeout_seconds))
        done, _ = await asyncio.wait(self._receiving.values(), return_when=asyncio.FIRST_COMPLETED)
        found = list[Received]()
        for side in [side for side, task in self._receiving.items() if task in done]:
            for received in self._receiving.pop(side).result():
                named = replace(received, peer=side + received.peer)
                if side == _HERE or await self._is_for_ranks(named):
                    # The key is known to be a rank's: what follows has no more to ask of it.
                    found.append(replace(named, holder=None))
        return found

    async def send(self, peer: bytes, envelope: Envelope) -> None:
        """Send without waiting; raises PeerLostError when the peer is gone or its queue is full."""
        await self._sides[peer[:1]].send(peer[1:], envelope)

    async def tell(self, peer: bytes, message: Message) -> None:
        """Send to a launcher, which asks again where nothing comes."""
        with contextlib.suppress(PeerLostError):
            await self.send(peer, Envelope(message, {}, self._run_id, self._incarnation))

    def close(self) -> None:
        """Receive no more; both sides are closed by whoever opened them."""
        for task in self._receiving.values():
            task.cancel()

    async def _is_for_ranks(self, received: Received) -> bool:
        """Whether it is a rank's; answered here where it is not, or may not be."""
        envelope, holder = received.envelope, received.holder
        if holder is None or holder.role != "rank":
            role = "nobody" if holder is None else f"the role {holder.role}"
            detail = f"the key is for {role}: machines of ranks need one of `dcpo keygen KEYS --rank NAME`"
            await self.tell(received.peer, Reject(reason="role", detail=detail))
            return False
        if not isinstance(envelope, Envelope):
            return True
        if envelope.run_id not in ("", self._run_id):
            return True
        answer = self._desk.answer(holder.name, envelope.message)
        if answer is None:
            return True
        await self.tell(received.peer, answer)
        return False
