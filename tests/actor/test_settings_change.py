"""What an actor at work takes over of other settings."""

import pytest

from actor.settings_change import TAKEN_OVER, needs_new_start
from dcpo_async.protocol.messages import Welcome
from tests.protocol.made_session import WELCOME


def changed(**sections: dict[str, object]) -> Welcome:
    updates = {name: getattr(WELCOME, name).model_copy(update=values) for name, values in sections.items()}
    return WELCOME.model_copy(update=updates)


def test_the_next_lease_takes_over_what_no_engine_was_made_by() -> None:
    after = changed(
        sampling={"temperature": 0.5, "stop": ("Q:",), "stop_token_ids": (7,)},
        actor={"max_failures": 9, "regrade_share": 0.5},
    )
    after = after.model_copy(
        update={"seed": 9, "heartbeat_seconds": 1.0, "silence_seconds": 9.0, "weights_version": 8, "ask": "tcp://r:1"}
    )
    assert needs_new_start(WELCOME, after) == []


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (changed(grading={"extraction": "answer"}), "grading.extraction: boxed → answer"),
        (changed(grading={"format_penalty": 0.5}), "grading.format_penalty: 0.0 → 0.5"),
        (changed(sampling={"max_response_tokens": 16}), "sampling.max_response_tokens: 8 → 16"),
        (changed(actor={"kv_after_update": "recompute"}), "actor.kv_after_update: keep → recompute"),
        (WELCOME.model_copy(update={"dtype": "bfloat16"}), "dtype: float32 → bfloat16"),
        (WELCOME.model_copy(update={"weights_port": 7}), "weights_port: 5558 → 7"),
    ],
)
def test_whatever_engine_grading_or_fetches_were_made_by_needs_a_new_start(after: Welcome, told: str) -> None:
    assert needs_new_start(WELCOME, after) == [told]


def test_what_is_taken_over_is_named_as_the_welcome_names_it() -> None:
    names = set(Welcome.model_fields)
    assert {name.partition(".")[0] for name in TAKEN_OVER} <= names
