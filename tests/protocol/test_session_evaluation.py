"""What an actor's session makes of evaluations: leases with terms of their own, and a version to stay at."""

from dataclasses import replace

from dcpo_async.protocol.conversion import lease_to_message, sampling_of
from dcpo_async.protocol.events import LeaseGranted, NewVersion
from dcpo_async.protocol.messages import Envelope, Heartbeat, VersionMessage, Want
from dcpo_async.protocol.session import ActorSession
from dcpo_async.records import EVALUATION_POSITIONS, EvaluationTerms, Hold, Lease
from tests.protocol.made_session import WELCOME, lease
from tests.protocol.test_session import due, grant, kinds, take, working

TERMS = EvaluationTerms(exact_version=4, samples=3, temperature=0.5)


def evaluation_lease(number: int = 0) -> Lease:
    return replace(lease(EVALUATION_POSITIONS + number), terms=TERMS)


def ask(session: ActorSession, number: int = 0) -> list[object]:
    return list(session.on_envelope(Envelope(*lease_to_message(evaluation_lease(number)), "run", 1), 0.0))


def test_a_lease_of_an_evaluation_is_sampled_by_its_own_terms_and_takes_as_many_places() -> None:
    session = working(capacity=8)
    (event,) = ask(session)
    assert isinstance(event, LeaseGranted)
    assert event.lease.terms == TERMS
    sampling = sampling_of(event.welcome, event.lease)
    assert (sampling.group_size, sampling.temperature) == (3, 0.5)
    assert (sampling.max_response_tokens, sampling.seed) == (WELCOME.sampling.max_response_tokens, WELCOME.seed)
    assert session.num_responses == 3
    assert sampling_of(event.welcome, lease(0)).group_size == 2


def test_it_does_not_count_among_the_leases_of_training_that_have_arrived() -> None:
    session = working(capacity=12)
    message, arrays = lease_to_message(lease(0))
    session.on_envelope(Envelope(message.model_copy(update={"number": 5}), arrays, "run", 1), 0.0)
    ask(session)
    assert [one for one in due(session, 1.0) if isinstance(one, Want)] == [Want(num_leases=3, num_received=5)]


def test_a_version_to_stay_at_is_news_and_so_is_its_end() -> None:
    session = working()
    hold = Hold(4, 60.0)
    assert take(session, VersionMessage(weights_version=4, step=1, hold=hold)) == [NewVersion(4)]
    assert session.hold == hold
    assert take(session, VersionMessage(weights_version=4, step=1, hold=hold)) == []
    assert take(session, VersionMessage(weights_version=4, step=1)) == [NewVersion(4)]
    assert session.hold is None


def test_a_welcome_that_differs_in_what_to_stay_at_alone_changes_no_settings() -> None:
    session = working()
    assert take(session, WELCOME.model_copy(update={"hold": Hold(4, 60.0)})) == [NewVersion(4)]


def test_the_coordinator_hears_at_once_that_the_version_to_stay_at_is_here() -> None:
    session = working()
    session.adopted(3, None)
    assert kinds(session, 0.1) == []
    take(session, VersionMessage(weights_version=4, step=1, hold=Hold(4, 60.0)))
    session.adopted(4, None)
    (heartbeat,) = due(session, 0.2)
    assert isinstance(heartbeat, Heartbeat)
    assert heartbeat.weights_version == 4


def test_a_hello_tells_the_version_of_the_engine() -> None:
    session = working()
    session.adopted(4, None)
    grant(session, 0)
    (hello,) = [message for message in due(session, 100.0) if message.kind == "hello"]
    assert hello.weights_version == 4  # type: ignore[attr-defined]
