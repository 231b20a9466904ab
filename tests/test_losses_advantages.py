"""Advantages by hand and by enumeration, their limits, and which responses count.

verl's and TRL's own numbers are in test_losses_oracle.py.
"""

from itertools import combinations

import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.losses.advantages import (
    KINDS,
    Advantage,
    best_minus_second,
    counted_responses,
    gfpo_kept,
    maxrl,
    opo,
    pass_at_k,
    response_advantages,
    rloo,
    w_reinforce,
    whitened,
)
from e3jax.losses.brpo import PRIORS, at_tokens, piece_advantages, piece_ends, prior
from e3jax.losses.grpo import group_advantages
from tests.stages import grpo_stage

PLAIN = dict(
    normalize_std=True, ddof=1, epsilon=0.0, kind="group", k=2, positive=1.0, negative=1.0,
    truncated="train", keep=0, keep_by="shortest",
)  # fmt: skip
REWARD = np.array([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
LENGTH = np.array([[2, 6, 4, 8], [3, 3, 3, 3], [1, 2, 3, 4], [5, 6, 7, 8]])
DONE = np.ones(REWARD.shape, bool)


def advantages(reward_pg=REWARD, length_pg=LENGTH, done_pg=DONE, **changes):
    return response_advantages(reward_pg, length_pg, done_pg, Advantage(**PLAIN | changes))


def test_by_hand():
    """Groups of one right, three right, none and all; all-equal groups are exactly 0, and MaxRL's 0/0 among them."""
    nothing = np.zeros((2, 4))
    third = 1 / 3
    hand = {
        "rloo": [[1, -third, -third, -third], [third, third, third, -1]],
        "maxrl": [[3, -1, -1, -1], [third, third, third, -1]],  # m is 1/4 and 3/4
        "opo": [[0.9, -0.1, -0.1, -0.1], [0.25, 0.25, 0.25, -0.75]],  # baselines 2/20 and 9/12
    }
    for kind, rows in hand.items():
        got = advantages(kind=kind, epsilon=1e-12)
        np.testing.assert_allclose(got, np.concatenate([rows, nothing]), atol=1e-11)
        assert not got[2:].any(), kind
    np.testing.assert_array_equal(w_reinforce(REWARD), np.where(REWARD == 1, 1, -1))
    third_right = advantages(REWARD[:1], LENGTH[:1], DONE[:1], kind="w_reinforce", positive=0.1)
    np.testing.assert_allclose(third_right, [[0.1, -1, -1, -1]])  # W-REINFORCE
    np.testing.assert_array_equal(advantages(kind="w_reinforce", positive=0.0), np.where(REWARD == 1, 0, -1))  # NSR
    np.testing.assert_array_equal(advantages(kind="w_reinforce", negative=0.0), np.where(REWARD == 1, 1, 0))  # PSR


def test_the_default_is_grpo():
    """Bit for bit what `group_advantages` gives, with and without the standard deviation."""
    reward = np.random.default_rng(0).uniform(size=(5, 6))
    some = np.ones(reward.shape)
    for normalize_std in (True, False):
        want = group_advantages(reward, normalize_std=normalize_std, ddof=1, epsilon=1e-6)
        got = advantages(reward, some, some > 0, normalize_std=normalize_std, epsilon=1e-6)
        np.testing.assert_array_equal(got, want)


def test_two_scales():
    """Signs are scaled apart, whatever made them."""
    one, two = advantages(epsilon=1e-6), advantages(epsilon=1e-6, positive=0.5, negative=2.0)
    np.testing.assert_allclose(two, np.where(one > 0, 0.5 * one, 2 * one), rtol=1e-12)


@pytest.mark.parametrize(("size", "k"), [(4, 1), (4, 2), (5, 3), (6, 6)])
def test_pass_at_k_by_enumeration(size, k):
    """Every subset of k gets (best − mean) / std over all subsets; a response gets its subsets' mean. (k = 1 is GRPO.)

    A response's advantage is the mean of those of the subsets that hold it.
    """
    for right in range(size + 1):
        reward = (np.arange(size) < right) * 1.0
        subsets = list(combinations(range(size), k))
        best = np.array([reward[list(s)].max() for s in subsets])
        if best.min() == best.max():
            want = np.zeros(size)
        else:
            a = (best - best.mean()) / best.std()
            want = np.array([np.mean([x for x, s in zip(a, subsets) if i in s]) for i in range(size)])
        got = pass_at_k(reward[None], k=k)[0]
        np.testing.assert_allclose(got, want, atol=1e-12, err_msg=str(right))
        if k == 1 and 0 < right < size:
            grpo = group_advantages(reward[None], normalize_std=True, ddof=0, epsilon=0.0)[0]
            np.testing.assert_allclose(got, grpo, rtol=1e-12)


def test_best_minus_second():
    """Ties give nothing; only one response is moved."""
    reward = np.array([[0.2, 1.0, 0.5], [1, 1, 0]])
    got = best_minus_second(reward, normalize_std=False, ddof=1, epsilon=0.0)
    np.testing.assert_allclose(got, [[0, 0.5, 0], [0, 0, 0]])
    std = reward.std(axis=1, ddof=1)
    got = best_minus_second(reward, normalize_std=True, ddof=1, epsilon=0.0)
    np.testing.assert_allclose(got[0], [0, 0.5 / std[0], 0])


def test_statistics_of_the_batch():
    """One scale for all groups; whitened advantages have mean 0 and variance 1 over tokens, not over responses."""
    reward = REWARD[:2]
    got = advantages(reward, LENGTH[:2], DONE[:2], kind="batch_std")
    np.testing.assert_allclose(got, (reward - reward.mean(1, keepdims=True)) / reward.std(ddof=1), rtol=1e-12)
    got = advantages(reward, LENGTH[:2], DONE[:2], kind="reinforce_pp")
    tokens = np.repeat(got.reshape(-1), LENGTH[:2].reshape(-1))
    assert abs(tokens.mean()) < 1e-12 and tokens.var(ddof=1) == pytest.approx(1, abs=1e-6)
    assert not whitened(np.zeros(3), np.ones(3)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_order_within_a_group_changes_nothing(kind):
    """A response keeps its advantage wherever it stands in its group."""
    rng = np.random.default_rng(1)
    order = np.array([rng.permutation(4) for _ in REWARD])
    moved = (np.take_along_axis(x, order, axis=1) for x in (REWARD, LENGTH, DONE))
    got = advantages(*moved, kind=kind, epsilon=1e-6)
    want = np.take_along_axis(advantages(kind=kind, epsilon=1e-6), order, axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_responses_leave_the_baseline(kind):
    """The others get what they would get without them; a group with one left, or fewer than k, has no advantage."""
    reward = np.array([[1.0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    length = np.array([[2, 6, 4, 8], [3, 9, 1, 2], [1, 1, 1, 1]])
    done = np.array([[1, 1, 1, 0], [1, 0, 1, 1], [0, 1, 0, 0]], bool)
    got = advantages(reward, length, done, kind=kind, truncated="mask", k=3)
    assert not got[~done].any()
    rows = [x[:2][done[:2]].reshape(2, 3) for x in (reward, length, done)]
    if kind not in ("batch_std", "reinforce_pp", "w_reinforce"):
        np.testing.assert_allclose(got[:2][done[:2]].reshape(2, 3), advantages(*rows, kind=kind, k=3), rtol=1e-12)
        assert not got[2].any()
    if kind == "batch_std":
        middle = reward[0, :3] - 2 / 3
        np.testing.assert_allclose(got[0, :3], middle / reward[:2][done[:2]].std(ddof=1), rtol=1e-12)


def test_gfpo():
    """Four of six by hand: the shortest; and the most reward per token, where two wrong ones tie at 0."""
    reward = np.array([[1.0, 0, 1, 0, 1, 0]])
    length = np.array([[60, 10, 20, 50, 30, 40]])
    every = np.ones(reward.shape, bool)
    assert gfpo_kept(reward, length, every, keep=4, by="shortest").tolist() == [[0, 1, 1, 0, 1, 1]]
    assert gfpo_kept(reward, length, every, keep=4, by="reward_per_token").tolist() == [[1, 1, 1, 0, 1, 0]]
    got = advantages(reward, length, every, keep=4)
    std = np.sqrt(1 / 3)  # of (0, 1, 1, 0)
    np.testing.assert_allclose(got, np.array([[0, -0.5, 0.5, 0, 0.5, -0.5]]) / std, rtol=1e-12)
    cut = every & (length != 20)  # truncated ones are no candidates
    assert advantages(reward, length, cut, keep=4, truncated="mask")[0].astype(bool).tolist() == [0, 1, 0, 1, 1, 1]


def test_brpo_by_hand():
    """Right, wrong, right at three budgets of equal worth, beside a response that is always wrong.

    R = (2/3, 1/3, 1/3); the group's means (1/3, 1/6, 1/6); its own earlier scores 1 · 2/3 and (1 + 2·0)/3 · 1/3.
    """
    score_pgs = np.array([[[1.0, 0, 1], [0, 0, 0]]])
    got = piece_advantages(score_pgs, prior((8, 16, 24), "uniform"))
    want = [[1 / 3, 1 / 3 - (2 / 3 + 2 / 6) / 3, 1 / 3 - (2 / 9 + 1 / 6) / 3], [-1 / 3, -1 / 9, -1 / 18]]
    np.testing.assert_allclose(got[0], want, atol=1e-12)
    np.testing.assert_allclose(prior((8, 16, 24), "linear"), [1 / 6, 1 / 3, 1 / 2])
    assert prior((8, 16, 24), "last").tolist() == [0, 0, 1]
    got = at_tokens(got[0], np.array([2, 0]), (2, 4, 6), width=9)
    np.testing.assert_allclose(got[0], [0, 0, *np.repeat(want[0], 2), want[0][2]])
    np.testing.assert_allclose(got[1], [*np.repeat(want[1], 2), *[want[1][2]] * 3])
    with pytest.raises(ValueError, match="a group of one has no baseline"):
        piece_advantages(np.ones((2, 1, 3)), np.ones(3) / 3)


@pytest.mark.parametrize("kind", PRIORS)
def test_brpo_by_its_definition(kind):
    """Sums written out; and its limits: one piece is R − m, and so is the first one of any."""
    rng = np.random.default_rng(4)
    score_pgs, ends = rng.uniform(size=(3, 5, 4)), piece_ends(97, 4)
    w = prior(ends, kind)
    got = piece_advantages(score_pgs, w)
    for p, g, s in np.ndindex(score_pgs.shape):
        still = [sum(w[j] * r[j] for j in range(s, 4)) for r in score_pgs[p]]
        late = sum(2.0**j for j in range(s))
        own = sum(w[s:]) * sum(2.0**j * score_pgs[p, g, j] for j in range(s)) / late if s else 0.0
        want = still[g] - (s * own + (4 - s) * np.mean(still)) / 4
        assert got[p, g, s] == pytest.approx(want, abs=1e-12), (p, g, s)
    whole = (score_pgs * w).sum(-1)
    centred = group_advantages(whole, normalize_std=False, ddof=0, epsilon=0.0)
    np.testing.assert_allclose(got[..., 0], centred, atol=1e-12)
    one = piece_advantages(score_pgs[..., -1:], prior((97,), kind))
    last = group_advantages(score_pgs[..., -1], normalize_std=False, ddof=0, epsilon=0.0)
    np.testing.assert_allclose(one[..., 0], last, atol=1e-12)


def test_which_responses_the_loss_counts():
    advantage_b, done_b = np.array([1.0, -1, 0, 0, 2, -1]), np.array([1, 1, 1, 0, 0, 1], bool)
    rule = dict(group_size=2)
    assert counted_responses(advantage_b, done_b, truncated="train", no_spread="keep", **rule) is None
    assert counted_responses(advantage_b, done_b, truncated="mask", no_spread="keep", **rule).tolist() == [
        *(True, True, True, False, False, True)
    ]
    assert counted_responses(advantage_b, done_b, truncated="train", no_spread="drop", **rule).tolist() == [
        *(True, True, False, False, True, True)
    ]


def test_what_cannot_be_is_refused():
    """Groups of one, k > G, and rewards that are not 0 and 1, in a sentence that names the field."""
    alone = np.ones((3, 1))
    for kind in sorted(set(KINDS) - {"w_reinforce", "pass_at_k"}):
        with pytest.raises(ValueError, match="group of one"):
            advantages(alone, alone, alone > 0, kind=kind)
    assert advantages(alone, alone, alone > 0, kind="w_reinforce").tolist() == [[1], [1], [1]]
    for call in (rloo, lambda x: maxrl(x, epsilon=1.0), lambda x: opo(x, x)):
        with pytest.raises(ValueError, match="group of one"):
            call(alone)
    with pytest.raises(ValueError, match="pass@5 needs groups of 5"):
        pass_at_k(REWARD, k=5)
    refused = {
        "advantage.k=9: at most group_size=8": dict(advantage=dict(kind="pass_at_k", k=9)),
        "advantage.keep=9: at most group_size=8": dict(advantage=dict(keep=9)),
        "advantage.kind='maxrl': reads right and wrong": dict(
            advantage=dict(kind="maxrl"), reward=dict(overlong_buffer=4)
        ),
        "kind='brpo': 'brpo' compares whole groups": dict(advantage=dict(kind="brpo", keep=4)),
        "advantage.kind='brpo': has an advantage a token": dict(
            advantage=dict(kind="brpo"), weights=dict(gradients="positive")
        ),
        "advantage.kind='brpo': reads right and wrong": dict(
            advantage=dict(kind="brpo"), reward=dict(lie_repetition=0.6)
        ),
        "advantage.pieces=21: at most the budget, 20 tokens": dict(advantage=dict(kind="brpo", pieces=21)),
        "prior='exponential': use one of 'linear'": dict(advantage=dict(prior="exponential")),
        "kind='grpo': use one of 'group'": dict(advantage=dict(kind="grpo")),
        "keep=1: use 0": dict(advantage=dict(keep=1)),
        "keep=3: pass@4 needs groups of 4": dict(advantage=dict(kind="pass_at_k", k=4, keep=3)),
        "positive=-1.0: use 0 or more": dict(advantage=dict(positive=-1.0)),
    }
    for sentence, changes in refused.items():
        with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
            grpo_stage(**changes)
