"""The GRPO update as the trainer does it: exact micro-batches, nothing from all-equal groups; and it learns."""

import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from e3jax.errors import UserError
from e3jax.losses.grpo import TokenWeights, group_advantages
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Requests, sample
from e3jax.sharding import make_mesh, param_shardings
from e3jax.train import grpo
from e3jax.train.closing import check_closing, closing_mask
from e3jax.train.logprobs import score
from e3jax.train.packing import micro_batch_shapes, pack_micro_batches, padding
from e3jax.train.state import Optimizer, apply_gradients, make_optimizer, new_state
from tests.stages import grpo_stage

LOSS = dict(
    clip_low=0.2, clip_high=0.5, dual_clip=3.0, kl_coef=0.01, kl_estimator="k3", entropy_coef=0.001, tis_cap=2.0
)
WEIGHTS = dict(aggregation="token_mean", gradients="all", denominator="shrunken", closing="", closing_match="text")


def stage(*, weights=WEIGHTS, loss=LOSS, **changes):
    """Return a stage whose budget is 20 tokens, with one minibatch."""
    return grpo_stage(**dict(minibatches=1, rows=16, weights=weights, loss=loss) | changes)


def graded(model, params, score_b, *, prompts=4, samples=4, budget=20):
    """Return rollouts of a random model with the given scores."""
    rollouts = sample(
        model,
        params,
        Requests([[5, 6, 7 + p] for p in range(prompts)], range(prompts), samples, budget),
        Sampling(temperature=1.0, slots=16, block=8, prefill_rows=4),
        key=jax.random.key(0),
        stop=(1,),
        pad=0,
    )
    return SimpleNamespace(rollouts=rollouts, score_b=score_b)


@pytest.fixture(scope="module")
def setting(tiny):
    model, params = tiny
    params = params | {"embed_vd": params["embed_vd"] * 8}
    run = SimpleNamespace(model=model, tokenizer=SimpleNamespace(pad=0), chunk=4096, prompt_room=8)
    return run, params


def updated(
    run,
    params,
    score_b,
    *,
    rows,
    minibatches=1,
    ref=None,
    weights=WEIGHTS,
    lr=1.0,
    edit=lambda rollouts: None,
    old_logp="trainer",
    coefficient=None,
):
    """Return parameters after one RL step with plain SGD, so that their differences are those of gradients."""
    tx = optax.sgd(lr)
    state = new_state(tx, jax.tree.map(jnp.copy, params))
    g = graded(run.model, params, score_b)
    edit(g.rollouts)
    lambda_bt = None if coefficient is None else np.full(g.rollouts.tokens.shape, coefficient, np.float32)
    advantage_b = group_advantages(score_b.reshape(4, 4), normalize_std=True, ddof=1, epsilon=1e-6).reshape(-1)
    state, values, _ = grpo.update(
        run,
        tx,
        state,
        g,
        advantage_b,
        params if ref is None else ref,
        stage(minibatches=minibatches, rows=rows, old_logp=old_logp, weights=weights),
        lambda_bt=lambda_bt,
    )
    return state.params, values


MIXED = np.array([1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 0, 0], float)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "dr_grpo"])
def test_micro_batches_equal_one_batch(setting, aggregation):
    """Means per micro-batch (verl issues 5625, 7321) would differ with these ragged lengths."""
    run, params = setting
    weights = WEIGHTS | {"aggregation": aggregation}
    one, a = updated(run, params, MIXED, rows=16, weights=weights)
    many, b = updated(run, params, MIXED, rows=3, weights=weights)
    step = max(float(abs(x - y).max()) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(params)))
    assert step > 1e-4
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6 * max(1, step)), one, many)
    assert a["loss/pg"] == pytest.approx(b["loss/pg"], abs=1e-6)


def test_all_equal_groups_change_nothing(setting):
    """No advantage, KL and entropy off: the parameters stay bit for bit."""
    run, params = setting
    tx = optax.sgd(1.0)
    state = new_state(tx, jax.tree.map(jnp.copy, params))
    score_b = np.repeat([1.0, 0.0, 0.3, 1.0], 4)
    advantage_b = group_advantages(score_b.reshape(4, 4), normalize_std=True, ddof=1, epsilon=1e-6).reshape(-1)
    state, _, _ = grpo.update(
        run,
        tx,
        state,
        graded(run.model, params, score_b),
        advantage_b,
        params,
        stage(loss=LOSS | {"entropy_coef": 0.0, "kl_coef": 0.0}),
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, params)


def test_first_minibatch_is_on_policy_and_parity_is_logged(setting):
    """Ratio 1 at the first update: nothing clipped, ppo_kl 0; KL to another reference is not 0."""
    run, params = setting
    other = jax.tree.map(lambda x: x * 1.05, params)
    _, values = updated(run, params, MIXED, rows=16, ref=other)
    assert values["loss/clip_low"] == values["loss/clip_high"] == 0
    assert abs(values["loss/ppo_kl"]) < 1e-6
    assert values["loss/kl"] > 1e-4
    assert 0 < values["parity/logp_max"] < 1e-4
    assert 0 < values["grad/negative_mass"] < 1


def test_old_log_probs_from_the_sampler(setting):
    """The same update to rounding; parity is measured all the same, and a wrong log-prob of the sampler shows in it."""
    run, params = setting
    want, values = updated(run, params, MIXED, rows=16, minibatches=2)
    got, same = updated(run, params, MIXED, rows=16, minibatches=2, old_logp="sampler")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), want, got)
    assert same["parity/logp_max"] == pytest.approx(values["parity/logp_max"], abs=1e-6) and 0 < same["parity/logp_max"]

    def shifted(rollouts):
        rollouts.logp[rollouts.sampled] += 0.5

    for old_logp in ("trainer", "sampler"):
        _, values = updated(run, params, MIXED, rows=16, edit=shifted, old_logp=old_logp)
        assert values["parity/logp_mean"] == pytest.approx(0.5, abs=1e-4)


def test_e2cs_lambda_in_the_update(setting):
    """λ = 1 changes no bit of parameters and metrics; the policy gradient is linear in λ."""
    run, params = setting
    plain, values = updated(run, params, MIXED, rows=16)
    none, double = (updated(run, params, MIXED, rows=16, coefficient=x)[0] for x in (0.0, 2.0))
    one, same = updated(run, params, MIXED, rows=16, coefficient=1.0)
    jax.tree.map(np.testing.assert_array_equal, one, plain)
    assert same == values
    jax.tree.map(lambda a, b, x: np.testing.assert_allclose(a - x, x - b, atol=2e-6), double, none, plain)
    assert max(float(abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (double, none)))) > 1e-3


@pytest.mark.parametrize("gradients", ["positive", "all"])
def test_positive_only_ignores_failures(setting, gradients):
    """With GRPOMask other tokens in the failed samples change nothing; without it they do."""
    run, params = setting
    weights = WEIGHTS | {"gradients": gradients}

    def garble(rollouts):
        rollouts.tokens[rollouts.sampled & (MIXED == 0)[:, None]] = 9

    want, values = updated(run, params, MIXED, rows=16, weights=weights)
    got, _ = updated(run, params, MIXED, rows=16, weights=weights, edit=garble)
    gap = max(float(abs(x - y).max()) for x, y in zip(jax.tree.leaves(want), jax.tree.leaves(got)))
    assert (gap == 0) == (gradients == "positive"), gap
    assert (values["grad/negative_mass"] == 0) == (gradients == "positive")


class Pieces:
    """A tokenizer of given pieces of text, as BPE might cut them; piece 0 is padding."""

    def __init__(self, *texts):
        self.texts = ("", *texts)

    def decode(self, tokens):
        return "".join(self.texts[t] for t in tokens)

    def encode(self, text):
        tokens = []
        while text:
            best = max((t for t in self.texts[1:] if text.startswith(t)), key=len)
            tokens.append(self.texts.index(best))
            text = text[len(best) :]
        return tokens


CUT = Pieces("</", "think", ">", "a", ".</", "</answer>")


def responses(*rows, prompt=1):
    """Return rollouts with only what `closing_mask` reads: each row begins with `prompt` tokens of a prompt."""
    width = max(map(len, rows))
    tokens = np.array([row + [0] * (width - len(row)) for row in rows])
    length = np.array([len(row) for row in rows])
    at = np.arange(width)
    return SimpleNamespace(
        tokens=tokens,
        prompt_len=np.full(len(rows), prompt),
        length=length,
        sampled=(at >= prompt) & (at < length[:, None]),
    )


def test_no_eos_finds_a_closing_of_several_tokens():
    """encode("</think>")[0] was looked for: where BPE joins ".</", or the closing is not one token, nothing was masked.

    Rows: "</think>" in the prompt does not count; three tokens; joined with the point before; another tag; none.
    """
    rows = [[1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 5, 2, 3, 4], [1, 2, 3, 4, 6, 4, 4, 4], [1, 2, 3, 4, 4, 4, 4, 4]]
    r = responses(*rows, prompt=3)
    got = closing_mask(CUT, r, closing="</think>", match="text")
    np.testing.assert_array_equal(got[:2], [[0, 0, 0, 0, 1, 1, 1, 1]] * 2)
    assert not got[2:].any()


def test_the_references_no_eos_matches_one_token():
    """Its rule: from the first sampled token 524, Llama's "</", onward; what it closes and what is joined to it is not
    looked at. A "</" of the prompt closes nothing."""
    r = responses([1, 4, 1, 4], [1, 4, 5, 4], prompt=1)
    got = closing_mask(CUT, r, closing="</", match="token")
    np.testing.assert_array_equal(got, [[0, 0, 1, 1], [0, 0, 0, 0]])


def test_a_closing_that_cannot_be_found_is_refused():
    check_closing(CUT, "</think>", match="text")
    check_closing(CUT, "</", match="token")
    with pytest.raises(UserError, match=r"closing='</think>': is 3 tokens"):
        check_closing(CUT, "</think>", match="token")
    with pytest.raises(UserError, match="closing='': does not appear"):
        check_closing(CUT, "", match="text")


def test_what_no_eos_takes_out_is_logged_and_told(setting):
    """grad/masked is the share of sampled tokens without weight; where "no-eos" gives 0, a line names the closing."""
    run, params = setting
    words = SimpleNamespace(pad=0, decode=lambda tokens: " ".join(map(str, tokens)), encode=lambda text: [int(text)])
    run = SimpleNamespace(**vars(run) | {"tokenizer": words})
    weights = WEIGHTS | {"gradients": "no-eos", "closing": "9999"}
    _, nothing = updated(run, params, MIXED, rows=16, weights=weights)
    advantage_b = np.where(MIXED > 0, 1.0, -1.0)
    told = SimpleNamespace(reasons=["wrong_value"], problems=[])
    sentences = list(grpo.alarms(told, nothing, advantage_b, weights=TokenWeights(**weights), parity_alarm=9.0))
    assert nothing["grad/masked"] == 0 and len(sentences) == 1 and "'9999'" in sentences[0]
    _, positive = updated(run, params, MIXED, rows=16, weights=WEIGHTS | {"gradients": "positive"})
    sampled = graded(run.model, params, MIXED).rollouts.sampled
    assert positive["grad/masked"] == pytest.approx(sampled[MIXED == 0].sum() / sampled.sum())


def test_later_minibatches_are_off_policy(setting):
    """Old log-probs are those before the first update: after a large one the second minibatch has ratio != 1."""
    run, params = setting
    _, values = updated(run, params, MIXED, rows=16, minibatches=2, lr=3.0)
    assert abs(values["loss/ppo_kl"]) > 1e-3


def test_a_gradient_that_is_not_finite_changes_nothing():
    tx = make_optimizer(Optimizer(0.0, 0.9, 0.9, 1.0, "float32"), lr=0.1, warmup=0, decay_steps=0)
    state = new_state(tx, {"w": jnp.ones(3)})
    state, metrics = apply_gradients(tx, state, {"w": jnp.array([1.0, jnp.nan, 0.0])})
    assert metrics["skipped"] == 1 and (state.params["w"] == 1).all() and state.step == 1
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.opt_state))
    state, metrics = apply_gradients(tx, state, {"w": jnp.ones(3)})
    assert metrics["skipped"] == 0 and (state.params["w"] < 1).all()


def test_bfloat16_moments():
    """Half the bytes, three updates within 2^-8 of float32's; scalars stay (a count in bfloat16 stops at 256)."""
    params, after = {"w_d": jnp.linspace(-1, 1, 7)}, {}
    for dtype in ("float32", "bfloat16"):
        tx = make_optimizer(Optimizer(0.0, 0.9, 0.95, 1.0, dtype), lr=0.1, warmup=0, decay_steps=0)
        state = new_state(tx, jax.tree.map(jnp.copy, params))
        for i in range(3):
            state, _ = apply_gradients(tx, state, {"w_d": jnp.sin(jnp.arange(7) + i)})
        vectors = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
        assert len(vectors) == 2 and all(x.dtype == dtype for x in vectors)
        assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(state.opt_state) if not x.ndim)
        after[dtype] = state.params["w_d"] - params["w_d"]
    gap = abs(after["float32"] - after["bfloat16"]).max() / abs(after["float32"]).max()
    assert 0 < gap < 2**-8


def test_packed_log_probs_equal_those_alone(setting):
    """A neighbour in the row must not be seen, and positions restart: RoPE and attention are the sequence's own."""
    run, params = setting
    g = graded(run.model, params, MIXED)
    alone = np.asarray(score(run.model, params, g.rollouts.tokens, temperature=0.7, chunk=4096))
    micro = pack_micro_batches(g.rollouts.length, [(2, 64), (2, 32)])
    assert max(m.segments().max() for m in micro) > 1
    for m, logp in zip(micro, grpo.score_packed(run, params, g.rollouts, micro, temperature=0.7)):
        sampled = m.take(g.rollouts.sampled)
        np.testing.assert_allclose(logp[sampled], m.take(alone)[sampled], atol=2e-5)


class Quiet:
    """Stands for a run's log in `compile_ahead`: nothing was written yet, nothing is shown."""

    def __init__(self):
        self.lines, self.notes, self.done = [], [], 0

    def read(self, name):
        return []

    def append(self, name, line):
        self.lines.append(line)

    @contextlib.contextmanager
    def phase(self, name, *, total):
        self.total = total
        yield self

    def advance(self, n, note=None):
        self.done += n
        self.notes.append(note)


@pytest.fixture
def compiled():
    """Collect the names of the programs that XLA compiles."""
    names, listening = [], [True]

    def heard(event, seconds, **what):
        if listening[0] and event == "/jax/core/compile/backend_compile_duration":
            names.append(what["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield names
    listening[0] = False


def test_twenty_steps_compile_the_stages_shapes_and_no_more(setting, compiled):
    """Changing lengths, later steps and updated parameters must not recompile: everything is compiled beforehand."""
    run, params = setting
    run = SimpleNamespace(**vars(run) | {"prompt_room": 60})
    shapes = micro_batch_shapes(60 + 20, 2, groups=1)
    tx = make_optimizer(Optimizer(0.0, 0.9, 0.9, 1.0, "float32"), lr=1e-3, warmup=0, decay_steps=0)
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    programs = (grpo.grpo_gradient, grpo.score, apply_gradients)
    rng = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        params = jax.tree.map(jnp.copy, jax.device_put(params, param_shardings(params, mesh)))
        state = new_state(tx, jax.tree.map(jnp.copy, params))  # its buffers are donated
        run.log = Quiet()
        two = stage(name="hard", rows=2, minibatches=2)
        grpo.compile_ahead(run, tx, state, params, two)
        own = {"score", "grpo_gradient", "add", "apply_gradients"}
        assert own <= {name.removeprefix("jit_").removeprefix("jit(").rstrip(")") for name in compiled}, compiled
        assert run.log.done == run.log.total == 6 and run.log.lines == [{"stage": "hard", "shapes": shapes}]
        before, seen = [f._cache_size() for f in programs], set()
        whole = graded(run.model, params, MIXED)
        compiled.clear()
        for step in range(20):
            r = whole.rollouts
            length = rng.integers(r.prompt_len + 1, 24 if step % 2 else 10)  # long and short ones in turn
            cut = np.arange(r.tokens.shape[1])[None] < length[:, None]
            g = SimpleNamespace(rollouts=r._replace(length=length, sampled=r.sampled & cut), score_b=MIXED)
            micro = [m for part in np.split(length, 2) for m in pack_micro_batches(part, shapes)]
            seen |= {(m.rows, m.width) for m in micro}
            state, values, _ = grpo.update(run, tx, state, g, np.repeat([1.0, -1.0], 8), params, two)
            assert values["pack/padding"] == pytest.approx(padding(micro))
        traced = [f._cache_size() - n for f, n in zip(programs, before)]
    assert seen == set(shapes) == {(2, 80), (1, 80)}
    assert traced == [2, 2, 1], traced
    assert not [name for name in compiled if any(program in name for program in own)], compiled
