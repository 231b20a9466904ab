"""Traces of forced responses, token by token."""

from e3jax.eval.forcing import Trace, continued, force, reopened, thought
from e3jax.rollout.responses import Response

CLOSE, EOS, WAIT = (8, 9), 1, (7,)
STOP = (EOS,)


def test_a_thought_ends_at_its_mark_its_budget_or_its_ending_token():
    """Guards against a mark that counts when only half of it fits, and an ending token that does not end a thought."""
    whole = Response((5, 6, 8, 9, 5, EOS), True)
    assert thought(whole, close=CLOSE, budget=10) == Trace((5, 6, 8, 9), 0, 0, False, True)
    assert thought(whole, close=CLOSE, budget=4) == Trace((5, 6, 8, 9), 0, 0, False, True)
    assert thought(whole, close=CLOSE, budget=3) == Trace((5, 6, 8), 0, 0, False, False)
    silent = Response((5, 6, EOS), True)
    assert thought(silent, close=CLOSE, budget=3) == Trace((5, 6, EOS), 0, 0, True, True)
    assert thought(silent, close=CLOSE, budget=2) == Trace((5, 6), 0, 0, False, False)
    assert not thought(Response((5, 6, 7), False), close=CLOSE, budget=3).done  # its limit, no ending of its own


def test_waiting_by_hand():
    """think </think> becomes think Wait more </think>, and so on, answer EOS: tokens put there and taken away count."""
    trace = thought(Response((5, 8, 9, 6, EOS), True), close=CLOSE, budget=8)
    trace = force(reopened(trace, close=CLOSE, stop=STOP), WAIT)
    assert trace == Trace((5, 7), 1, 2, False, False)
    trace = continued(trace, Response((6, 8, 9), True), close=CLOSE, stop=STOP)  # it stopped at </think>: not done
    assert trace == Trace((5, 7, 6, 8, 9), 1, 2, False, True)
    again = force(reopened(trace, close=CLOSE, stop=STOP), WAIT)
    again = continued(again, Response((6, EOS), True), close=CLOSE, stop=STOP)  # gave up without </think>
    assert again == Trace((5, 7, 6, 7, 6, EOS), 2, 4, True, True)
    again = force(reopened(again, close=CLOSE, stop=STOP), WAIT)
    again = continued(again, Response((6, 6), False), close=CLOSE, stop=STOP)  # its 2 tokens: thinking goes on
    assert again == Trace((5, 7, 6, 7, 6, 7, 6, 6), 3, 5, False, False)
    assert reopened(again, close=CLOSE, stop=STOP) == again  # there is no ending to take away
    ended = continued(trace, Response((4, EOS), True), close=CLOSE, stop=STOP)
    assert ended == Trace((5, 7, 6, 8, 9, 4, EOS), 1, 2, True, True)


def test_stopping_by_hand():
    trace = force(thought(Response((5, 6, 5, 8, 9, 3, EOS), True), close=CLOSE, budget=2), (4, 8, 9))
    trace = continued(trace, Response((3, EOS), True), close=CLOSE, stop=STOP)
    assert trace.tokens == (5, 6, 4, 8, 9, 3, EOS) and (trace.forced, trace.dropped, trace.done) == (3, 0, True)
