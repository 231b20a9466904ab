"""The p^k model: closed form = enumeration = recursion = Monte Carlo, Theorem J.3 at random, one tiny run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.experiments import pk as config_file
from e3jax.didactic import checks, learn, pk, run, theorem, verdict
from e3jax.errors import UserError
from e3jax.metrics.names import undefined

SIGMAS = 4.0


@pytest.fixture(scope="module")
def small():
    """Return logits of 3 actions and all their traces of up to 4 tokens."""
    logits = pk.init_logits(jax.random.key(1), actions=3, span=1.0, stop=0.5, best=-0.5)
    return logits, list(checks.enumerate_traces(logits, budget=4))


def test_recursion_and_closed_form_are_the_enumeration(small):
    """Recursion and closed form equal the enumeration, in the distribution over (length, reward) too."""
    logits, traces = small
    assert sum(chance for chance, *_ in traces) == pytest.approx(1)
    won, lost = pk.length_distribution(logits, budget=4)
    for t in range(4):
        for chances, is_won in ((won, True), (lost, False)):
            by_hand = sum(c for c, length, w, _ in traces if (length, w) == (t + 1, is_won))
            assert float(chances[t]) == pytest.approx(by_hand, abs=1e-6)
    reward = sum(c for c, _, w, _ in traces if w)
    length = sum(c * n for c, n, *_ in traces)
    np.testing.assert_allclose(pk.closed_form(logits, budget=4), (reward, length), rtol=1e-5)
    seen = pk.observe(logits, budget=4)
    np.testing.assert_allclose((seen["reward"], seen["length"]), (reward, length), rtol=1e-5)
    assert float(seen["inverse_length"]) == pytest.approx(sum(c / n for c, n, *_ in traces), abs=1e-6)


@pytest.mark.parametrize("weighting", ["mean", "sum"])
@pytest.mark.parametrize(("won", "lost"), [(1.0, -1.0), (-1.0, -1.0), (0.7, 0.0)])
def test_expected_gradient_is_the_enumeration(small, weighting, won, lost):
    """Equals the weighted sum of every trace's score, without recursion or differentiation."""
    logits, traces = small
    by_hand = sum(c * (won if w else lost) * (1 / n if weighting == "mean" else 1) * s for c, n, w, s in traces)
    exact = pk.expected_gradient(logits, budget=4, won=won, lost=lost, weighting=weighting)
    np.testing.assert_allclose(exact, by_hand, atol=1e-6)
    if weighting == "sum" and won == lost:
        np.testing.assert_allclose(exact, 0, atol=1e-6)  # a constant advantage teaches nothing …
    if weighting == "mean" and won == lost:
        np.testing.assert_allclose(
            exact, -jax.grad(lambda m: pk.observe(m, budget=4)["inverse_length"])(logits), atol=1e-6
        )  # … unless 1/|τ| makes it −∇E[1/|τ|]


@pytest.fixture(scope="module")
def paper():
    """Return the paper's initial policy of 100 actions, with a* likely enough for a small error of few traces."""
    return learn.begin(jax.random.split(jax.random.key(0), 2), actions=100, span=3.0, stop=4.0, best=1.0)


def test_sampled_laws_and_gradients_agree(paper):
    """Within 4 standard errors; a wrong 1/|τ|, a lost last token or a biased draw is off by tens of them."""
    key, logits = jax.random.key(3), paper.logits[0]
    laws = checks.compare_laws(key, logits, budget=100, traces=2_000)
    for of in laws.values():
        assert abs(of["sigmas"]) < SIGMAS and of["closed"] == pytest.approx(of["exact"], rel=1e-4), laws
    for name, rows in checks.compare_gradients(key, logits, budget=100, traces=2_000).items():
        assert max(abs(x["sigmas"]) for x in rows) < SIGMAS, (name, rows)
        if name == "mean, A = -1":
            assert rows[0]["exact"] > 0  # along its own direction: length does rise


def test_sampled_update_is_the_traces_scores():
    """`sampled_gradient` equals autodiff of the traces' log-probs, with weights and ends."""
    logits = jax.random.normal(jax.random.key(0), (2, 5, 6))
    states, taken, length, won = pk.draw(jax.random.split(jax.random.key(1), 2), logits, group=3, budget=6)
    weight = jnp.arange(6.0).reshape(2, 3) - 2

    def objective(m):
        logp = jnp.pad(jax.nn.log_softmax(m, axis=-1), ((0, 0), (0, 0), (0, 1)))
        return (weight * logp[jnp.arange(2)[:, None], states, taken].sum(0)).sum()

    np.testing.assert_allclose(
        pk.sampled_gradient(logits, states, taken, weight), jax.grad(objective)(logits), atol=1e-5
    )
    assert ((taken <= 5).sum(0) == length).all()
    last = np.take_along_axis(np.asarray(taken), np.asarray(length)[None] - 1, axis=0)[0]
    assert ((last == pk.BEST) == won).all()


def test_group_advantage_is_expected_over_the_rest_of_the_group():
    """Equals the mean over all 2^3 groups of 3, and two readings by hand."""
    reward, group = 0.3, 3
    by_hand = {0: 0.0, 1: 0.0}
    for rest in np.ndindex(2, 2):
        chance = np.prod([reward if r else 1 - reward for r in rest])
        for own in (0, 1):
            r = jnp.array([[own, *rest]], jnp.float32)
            by_hand[own] += chance * float(learn.advantages(r, jnp.zeros(1), advantage="group", baseline=0.0)[0, 0])
    won, lost = learn.mean_advantages(jnp.array([reward]), advantage="group", baseline=0.0, group=group)
    assert (float(won[0]), float(lost[0])) == pytest.approx((by_hand[1], by_hand[0]), abs=1e-5)
    won, lost = learn.mean_advantages(jnp.array([reward]), advantage="average", baseline=0.0, group=1)
    assert (float(won[0]), float(lost[0])) == pytest.approx((0.7, -0.3))


def test_mask_changes_nothing_without_a_success():
    """Theorem J.3's end, in the code that trains: when all traces fail, M stays bit for bit; GRPO's does not."""
    start = learn.begin(jax.random.split(jax.random.key(0), 2), actions=4, span=1.0, stop=1.0, best=-60.0)
    how = {"gradient": "sampled", "advantage": "sign", "baseline": 0.0, "group": 1, "weighting": "mean", "lr": 0.1}
    after = {
        m: learn.some_updates(start, learn.Method(**how, masked=m), updates=2, budget=6)[0].logits
        for m in (False, True)
    }
    assert (after[True] == start.logits).all() and (after[False] != start.logits).any()


@pytest.mark.parametrize("actions", [3, 100])
def test_theorem_over_random_policies(actions):
    """For 10,000 policies entropy rises with at least the stated chance; also the corrected and the masked case."""
    found = theorem.verify(theorem.random_policies(np.random.default_rng(1), count=10_000, actions=actions))
    assert found["first_order"] == found["rise"] == found["chance"] == found["masked"] == found["bound"] == 1
    assert found["decidable"] > 0.99 and found["covered"] > 1_000
    assert found["mean_first_order"] < 1e-12  # but the expected change of entropy is 0 to first order


def test_entropy_after_is_a_step():
    """The O(K) formula equals taking the step."""
    logits = theorem.random_policies(np.random.default_rng(2), count=4, actions=7)
    logp = theorem.log_softmax(logits)
    for sign in (1.0, -1.0):
        fast = theorem.entropy_after(logp, step=0.3, sign=sign)
        for a in range(8):
            moved = logits + 0.3 * sign * (np.eye(8)[a] - np.exp(logp))
            np.testing.assert_allclose(fast[:, a], theorem.entropy(theorem.log_softmax(moved)), atol=1e-12)


def test_no_universal_constant():
    """The constant that Theorem J.3's K ε² bound needs falls as K grows."""
    found = theorem.smallest_constant((10, 100, 1_000, 10_000))
    assert found[10] > 5 * found[100] > 25 * found[1_000] > 125 * found[10_000] > 0


def test_verdict_follows_the_rule():
    """Each of the three statements that fails is named."""
    steps = np.arange(4)

    def curve(length, reward):
        return {"step": steps, "length": np.array(length)[:, None], "reward": np.array(reward)[:, None]}

    good = {"GRPO": curve([7, 20, 9, 3], [0, 0, 0.95, 1]), "mask": curve([7, 7, 7, 3], [0, 0, 0, 1])}
    late = {"GRPO": curve([7, 20, 40, 60], [0, 0, 0, 0.1]), "mask": curve([7, 7, 7, 7], [0, 0, 0, 0])}
    panels = {"length": "Length"}
    both = verdict.judge_settings({"a": good, "b": late}, {"a": "", "b": ""}, panels=panels, literal="a")
    assert both["verdict"] == "reproduced" and both["values"]["peak length"]["a, GRPO"] == {"0": 20}
    assert both["outcomes"]["b"] == "rise: yes, transition: no, failure of the mask: no"
    both = verdict.judge_settings({"a": good, "b": late}, {"a": "", "b": ""}, panels=panels, literal="b")
    assert both["verdict"] == "mixed"


def test_run_resumes_and_never_overwrites(tmp_path):
    """A tiny run of the command makes what a kill left half-done again, to the same numbers, and keeps the rest."""
    c = config_file.get_config()
    run.check(c)
    c.seeds, c.points, c.budget, c.model.actions = 2, 2, 6, 4
    c.checks.traces, c.checks.policies = 50, 20
    c.settings = {"one": config_file.setting(advantage="sign", lr=0.1, updates=4)}
    c.order = ("one",)
    run.main(c, str(tmp_path))
    lines = (tmp_path / "metrics.jsonl").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(lines.splitlines()) == 2 * 3 and results["verdict"] in ("reproduced", "mixed", "not reproduced")
    assert not undefined("pk", set(json.loads(lines.splitlines()[0])) - {"stage", "kind", "step"})
    assert "</svg>" in (tmp_path / "fig10.svg").read_text()
    (tmp_path / "DONE").unlink()
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines.splitlines()[:4]) + '\n{"stage": "one, ma')
    run.main(c, str(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    (tmp_path / "results.json").write_text("mine")
    run.main(c, str(tmp_path))
    assert (tmp_path / "results.json").read_text() == "mine"
    c.settings.one.updates = 5
    with pytest.raises(UserError, match=r"config.settings.one.updates=5: a multiple of config.points=2"):
        run.main(c, str(tmp_path))
