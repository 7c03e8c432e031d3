"""The circuit breaker, on a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lasro_reward_api.endpoints.circuit_breaker import CircuitBreaker, CircuitState, Verdict


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def opened(clock: Clock) -> CircuitBreaker:
    """Three failures, then open for 10 s."""
    breaker = CircuitBreaker(3, 10.0, clock)
    for _ in range(3):
        assert breaker.refusal() is None
        breaker.finish(breaker.start(), Verdict.FAILED)
    return breaker


def test_it_opens_at_the_limit_and_says_for_how_long() -> None:
    """Bug: a scorer that is down is called for every image, each call waiting for its timeout."""
    clock = Clock()
    breaker = opened(clock)
    assert breaker.state is CircuitState.OPEN
    clock.now_s += 4
    assert breaker.refusal() == "circuit open after 3 failures in a row; tried again in 6.0 s"


def test_an_open_circuit_says_what_the_last_failure_was() -> None:
    """Bug: once the circuit is open, why the scorer fails stands nowhere any more."""
    breaker = CircuitBreaker(1, 10.0, Clock())
    breaker.finish(breaker.start(), Verdict.FAILED, "HTTP 503: no GPU")
    assert breaker.refusal() == (
        "circuit open after 1 failures in a row, the last: HTTP 503: no GPU; tried again in 10.0 s"
    )


def test_failures_must_be_in_a_row() -> None:
    """Bug: rare failures add up over days until a healthy scorer is cut off."""
    breaker = CircuitBreaker(2, 10.0, Clock())
    for _ in range(5):
        breaker.finish(breaker.start(), Verdict.FAILED)
        breaker.finish(breaker.start(), Verdict.ANSWERED)
    breaker.finish(breaker.start(), Verdict.FAILED)
    breaker.finish(breaker.start(), Verdict.NOTHING)
    assert breaker.state is CircuitState.CLOSED


def test_one_trial_decides() -> None:
    """Bug: half-open lets the whole queue loose on a scorer that has just come back."""
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 10
    assert breaker.state is CircuitState.HALF_OPEN
    trial = breaker.start()
    assert "trial" in (breaker.refusal() or "")
    breaker.finish(trial, Verdict.FAILED)
    assert breaker.state is CircuitState.OPEN
    clock.now_s += 10
    breaker.finish(breaker.start(), Verdict.ANSWERED)
    assert breaker.state is CircuitState.CLOSED
    assert breaker.refusal() is None


def test_a_trial_that_was_cancelled_makes_room_for_another() -> None:
    """Bug: the trial's request is cut off, nobody reports back, and the circuit stays half-open for ever."""
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 10
    breaker.finish(breaker.start(), Verdict.NOTHING)
    assert breaker.refusal() is None


def test_a_call_from_before_says_nothing_about_now() -> None:
    """Bug: a slow call that began in good times closes the circuit, or its failure takes the trial's place."""
    clock = Clock()
    breaker = CircuitBreaker(1, 10.0, clock)
    old = breaker.start()
    breaker.finish(breaker.start(), Verdict.FAILED)
    breaker.finish(old, Verdict.ANSWERED)
    assert breaker.state is CircuitState.OPEN
    clock.now_s += 10
    trial = breaker.start()
    breaker.finish(old, Verdict.FAILED)
    assert breaker.state is CircuitState.HALF_OPEN
    breaker.finish(trial, Verdict.ANSWERED)
    assert breaker.state is CircuitState.CLOSED


@given(st.lists(st.tuples(st.sampled_from(["start", "finish", "wait"]), st.integers(0, 9), st.sampled_from(Verdict))))
def test_no_order_of_events_blocks_it_for_ever(events: list[tuple[str, int, Verdict]]) -> None:
    """Bug: some interleaving of calls leaves a circuit that no answer closes, or two trials at once."""
    clock = Clock()
    breaker = CircuitBreaker(2, 10.0, clock)
    running: list[int] = []
    for kind, number, verdict in events:
        if kind == "start" and breaker.refusal() is None:
            half_open = breaker.state is CircuitState.HALF_OPEN
            running.append(breaker.start())
            assert not half_open or breaker.refusal() is not None
        elif kind == "finish" and running:
            breaker.finish(running.pop(number % len(running)), verdict)
        else:
            clock.now_s += number
    for call in running:
        breaker.finish(call, Verdict.NOTHING)
    clock.now_s += 10
    assert breaker.refusal() is None
    breaker.finish(breaker.start(), Verdict.ANSWERED)
    assert breaker.state is CircuitState.CLOSED
