"""The simulator against hand-made schedules, and what its ways promise."""

import numpy as np
import pytest
from absl import flags

from e3jax.errors import UserError
from e3jax.tools import cost
from e3jax.tools.simulate import WAYS, Lengths, Work, schedule, simulate


def test_one_wave_by_hand():
    """Two groups of two in four slots: the step lasts as long as its longest response."""
    s = simulate(np.array([3, 5, 2, 2, 4, 4, 1, 1]), Work(groups=2, group_size=2, slots=4), "synchronous")
    assert s.ticks == (5 + 4) / 2 and s.tokens == (12 + 10) / 2 and s.wasted == s.prefilled == s.staleness == 0
    assert s.occupancy == pytest.approx((12 / 20 + 10 / 16) / 2)
    assert s.cached == (6 + 15 + 3 + 3 + 10 + 10 + 1 + 1) / 2
    assert s.trained_length == s.drawn_length == 22 / 8


def test_fewer_slots_than_responses_by_hand():
    """A slot takes the next response when its own ends."""
    assert schedule([5, 2, 4, 1], 2).tolist() == [0, 0, 2, 5]
    s = simulate(np.array([5, 2, 4, 1] * 2), Work(groups=2, group_size=2, slots=2), "synchronous")
    assert s.ticks == 6 and s.occupancy == 12 / 12


def test_over_sampling_by_hand():
    """The group that would be last is thrown away with the tokens that it has."""
    s = simulate(np.array([9, 1, 2, 3, 4, 4] * 2), Work(groups=2, group_size=2, slots=6, extra=1), "over-sampling")
    assert s.ticks == 4 and s.wasted == 5 and s.tokens == 4 + 1 + 2 + 3 + 4 + 4
    assert s.trained_length == 13 / 4 < s.drawn_length


def test_carry_over_by_hand():
    """Free slots take further groups; the long group goes on in the next step, and no slot is ever idle."""
    lengths = np.array([9, 1, 2, 3, 4, 4] + [5, 5] * 17)
    s = simulate(lengths, Work(groups=2, group_size=2, slots=6), "carry-over")
    # step 1 has 4 ticks: groups 1 and 2 are complete. Group 0 has drawn 4 + 1 tokens and group 3 has 3 + 2: they go on.
    # Group 4 has one: of the groups of one step two go on, so it is thrown away and begins again.
    # step 2: group 3 needs 3 more, groups 0 and 4 5, so it ends with 5 ticks; groups 0 and 3 are the oldest. Of group 6
    # two tokens are thrown away.
    assert s.occupancy == 1 and s.staleness > 0
    two = simulate(lengths[:20], Work(groups=2, group_size=2, slots=6), "carry-over")  # two steps
    assert two.ticks == (4 + 5) / 2 and two.prefilled == (0 + 4 + 3 + 2) / 2 and two.wasted == (1 + 2) / 2
    assert two.trained_length == (2 + 3 + 4 + 4 + 9 + 1 + 5 + 5) / 8
    # of the trained tokens, 4 + 1 of group 0 and 3 + 2 of group 3 are a step old
    assert two.staleness == pytest.approx(10 / 33)


def test_a_bound_by_hand():
    """The second step waits for group 0, and of the three groups that were drawn meanwhile two are thrown away."""
    s = simulate(np.array([9, *[2] * 5]), Work(groups=1, group_size=1, slots=2, bound=1), "carry-over")
    assert s.ticks == (2 + 7) / 2 and s.tokens == (4 + 13) / 2 and s.wasted == (0 + 4) / 2
    assert s.trained_length == (2 + 9) / 2


def test_every_way_keeps_what_it_promises():
    """Carry-over has no bias and no idle slots, over-sampling has a bias, and synchronous steps wait."""
    rng = np.random.default_rng(0)
    lengths = Lengths(p10=60, p50=180, p90=480, budget=2048).draw(rng, 8 * 64 * 200)  # the budget cuts none
    of = {way: simulate(lengths, Work(groups=64, group_size=8, slots=512, extra=16), way) for way in WAYS}
    sync, over, carry = (of[way] for way in WAYS)
    assert sync.trained_length == pytest.approx(sync.drawn_length, rel=1e-3)
    assert carry.trained_length == pytest.approx(carry.drawn_length, rel=0.01)
    assert over.trained_length < 0.985 * over.drawn_length and over.wasted > 0.2 * over.tokens
    assert sync.occupancy < 0.5 and carry.occupancy > 0.99
    assert carry.ticks < 0.5 * sync.ticks and carry.tokens == pytest.approx(sync.tokens, rel=0.02)
    assert 0 < carry.staleness < 2 and over.staleness == sync.staleness == 0


def test_without_extra_groups_over_sampling_is_synchronous():
    lengths = Lengths(p10=10, p50=20, p90=90, budget=96).draw(np.random.default_rng(1), 640)
    one, other = (simulate(lengths, Work(groups=8, group_size=4, slots=16), way) for way in WAYS[:2])
    assert one == other


def test_lengths_have_their_quantiles_and_the_budget_cuts():
    law = Lengths(p10=60, p50=180, p90=480, budget=512)
    drawn = law.draw(np.random.default_rng(0), 100_000)
    assert np.quantile(drawn, (0.1, 0.5, 0.9)) == pytest.approx([60, 180, 480], rel=0.02)
    assert drawn.min() >= 1 and drawn.max() == 512


def test_bad_input():
    with pytest.raises(UserError, match="'asynchronous': use one of synchronous"):
        simulate(np.ones(80, int), Work(groups=2, group_size=2, slots=4), "asynchronous")
    with pytest.raises(UserError, match="3 groups are too few: give 4 or more"):
        simulate(np.ones(6, int), Work(groups=2, group_size=2, slots=4), "synchronous")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quantiles=5,3,9", "--config=configs/quickstart.py"], "--quantiles=5,3,9: give three numbers"),
        (["--quantiles=a,b,c", "--config=configs/quickstart.py"], "--quantiles=a,b,c: give three numbers"),
        (["--quantiles=3,5,9"], "--simulate wants a --config with a GRPO stage"),
        (["--quantiles=3,5,9", "--config=configs/my_sft.py"], "--simulate wants a --config with a GRPO stage"),
        (["--quantiles=3,5,9", "--config=configs/quickstart.py", "--chip=v9"], "--chip='v9': use one of"),
    ],
)
def test_the_command_refuses(words, said):
    values = flags.FlagValues()
    cost.define(values)
    values(["cost", "--chips=1", "--simulate", *words])
    with pytest.raises(UserError, match=said):
        cost.simulated(values, values.config)
