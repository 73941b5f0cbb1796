from enum import Enum
from typing import Any

import pytest

from dcpo_async.errors import ProtocolError
from dcpo_async.protocol.transitions import ActorInput, ActorState, next_state

# One row for each state, one column for each input; a dash is an illegal pair.
ACTOR = """
          WELCOME  LEASE     ACK       VERSION   REJOIN    STOP      REFUSE  COMPLAIN  DISMISS SILENCE   DRAIN    EMPTIED DEADLINE
JOINING   WORKING  -         -         JOINING   JOINING   JOINING   REFUSED JOINING   ENDED   -         DRAINING -       ENDED
WORKING   WORKING  WORKING   WORKING   WORKING   REJOINING REJOINING REFUSED WORKING   ENDED   REJOINING DRAINING -       -
REJOINING WORKING  REJOINING REJOINING REJOINING REJOINING REJOINING REFUSED REJOINING ENDED   -         DRAINING -       ENDED
DRAINING  DRAINING DRAINING  DRAINING  DRAINING  DRAINING  DRAINING  REFUSED DRAINING  ENDED   DRAINING  DRAINING ENDED   ENDED
REFUSED   -        -         -         -         -         -         -       -         -       -         REFUSED  -       -
ENDED     -        -         -         -         -         -         -       -         -       -         ENDED    -       -
"""  # noqa: E501


def pairs(table: str, states: type[Enum], inputs: type[Enum]) -> list[tuple[Any, Any, Any]]:
    columns, *rows = [line.split() for line in table.strip().splitlines()]
    found = [
        (states[state], inputs[column], None if cell == "-" else states[cell])
        for state, *cells in rows
        for column, cell in zip(columns, cells, strict=True)
    ]
    assert {(state, happened) for state, happened, _ in found} == {(s, i) for s in states for i in inputs}
    return found


@pytest.mark.parametrize(("state", "happened", "following"), pairs(ACTOR, ActorState, ActorInput))
def test_every_pair_of_state_and_input_does_what_the_table_says(
    state: ActorState, happened: ActorInput, following: ActorState | None
) -> None:
    if following is not None:
        assert next_state(state, happened) is following
        return
    with pytest.raises(ProtocolError, match=f"in a session that is {state.value}; allowed are "):
        next_state(state, happened)
