"""How many tokens come in each second."""

from learner.scheduling.token_rate import TokenRate


def test_a_token_rate_needs_two_reports_and_forgets_old_ones() -> None:
    rate = TokenRate(window_seconds=30.0)
    rate.add(now=0.0, num_tokens=100)
    assert rate.per_second(now=1.0) == 0.0
    rate.add(now=10.0, num_tokens=200)
    assert rate.per_second(now=10.0) == 20.0
    assert rate.per_second(now=100.0) == 0.0
