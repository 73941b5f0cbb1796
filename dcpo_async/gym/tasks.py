"""Tasks of Reasoning Gym 0.1.25 that one should not train on; `python -m bench.gym` tries them all."""

from collections.abc import Mapping
from typing import Final

_NO_ANSWER = (
    "its problems have no answer of their own (None), so that nothing shows that its scorer rewards a right one"
)
_TUPLES = "its scorer compares tuples, and gives its own answer 0.05 once the metadata went through JSON"

REFUSED: Final[Mapping[str, str]] = {
    "arc_agi": _TUPLES,
    "boxnet": _NO_ANSWER,
    "composite": "it has no problems of its own; name one of the tasks that it would be made of",
    "game_of_life_halting": "its scorer asks only whether the answer is empty: nonsense has the full reward",
    "graph_color": _NO_ANSWER,
    "propositional_logic": _NO_ANSWER,
    "puzzle24": "its scorer does not ask for the problem's numbers: one expression has the full reward everywhere",
    "rearc": _TUPLES,
    "rubiks_cube": _NO_ANSWER,
    "rush_hour": _NO_ANSWER,
}
"""Why, by task."""
