"""The sampler tells the truth about its log-probs, and its schedule changes nothing."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SLOW

from e3jax.errors import UserError
from e3jax.models.cache import quantize
from e3jax.models.presets import preset
from e3jax.models.qwen3 import Qwen3, init_params
from e3jax.sampler import decode
from e3jax.sampler import slots as slots_module
from e3jax.sampler.choose import choose, inverse_cdf, truncate
from e3jax.sampler.layout import few_weights, mover, of_prefill_and_decoding, to_sampling
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Events, Requests, sample
from e3jax.sharding import make_mesh, param_shardings, sampling_mesh
from e3jax.train.logprobs import score

EOS, PAD = 1, 0
PLAIN = dict(top_k=0, top_p=1.0)


def draw(model, params, prompts, *, ids=None, samples=3, budget=24, stop=(EOS,), temperature=1.0, key=7, **schedule):
    heard = {name: schedule.pop(name) for name in Events._fields if name in schedule}
    sampling = Sampling(temperature=temperature, **dict(slots=16, block=8, prefill_rows=4) | schedule)
    requests = Requests(prompts, range(len(prompts)) if ids is None else ids, samples, budget)
    return sample(
        model, params, requests, sampling, key=jax.random.key(key), stop=stop, pad=PAD, events=Events(**heard)
    )


def ragged_prompts(count, vocab, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, vocab, rng.integers(1, 9)).tolist() for _ in range(count)]


@pytest.fixture(scope="module")
def sharp(tiny):
    """Return a tiny model whose logits are spread enough that EOS and repeats occur."""
    model, params = tiny
    return model, params | {"embed_vd": params["embed_vd"] * 8}


# ---- one step: choose


def test_inverse_cdf_by_hand():
    """p = .5, .3, .2: u = .49 -> 0, .51 -> 1, .81 -> 2; a token of zero mass is never drawn."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]] * 3))
    token, logp, entropy = choose(logits, jnp.array([0.49, 0.51, 0.81]), temperature=1.0, **PLAIN)
    assert token.tolist() == [0, 1, 2]
    np.testing.assert_allclose(logp, np.log([0.5, 0.3, 0.2]), rtol=1e-6)
    np.testing.assert_allclose(entropy, -np.sum([p * np.log(p) for p in (0.5, 0.3, 0.2)]), rtol=1e-6)
    masked = jnp.array([[-jnp.inf, 0.0, -jnp.inf]] * 2)
    assert choose(masked, jnp.array([0.0, 1 - 2**-23]), temperature=1.0, **PLAIN)[0].tolist() == [1, 1]


@pytest.mark.parametrize("size", [5, 512, 513, 4000])
def test_inverse_cdf_equals_a_search_in_float64(size):
    """With blocks of the vocabulary a token is the one whose interval holds u, up to rounding at its ends."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(size, 0.1), 300) * (rng.random((300, size)) < 0.7) + np.eye(size)[3] * 1e-3
    p /= p.sum(1, keepdims=True)
    u = np.append(rng.random(298), [0.0, 1 - 2**-24])
    got = np.asarray(inverse_cdf(jnp.asarray(p, jnp.float32), jnp.asarray(u, jnp.float32)))
    cdf, row = p.cumsum(1), np.arange(300)
    assert (p[row, got] > 0).all()
    assert (cdf[row, got] > u - 1e-6).all() and (cdf[row, got] - p[row, got] < u + 1e-6).all()


def test_frequencies_follow_the_tempered_distribution():
    """20,000 draws at temperature 0.5 lie within 4 σ of p² / Σp²."""
    p = np.array([0.5, 0.3, 0.2])
    u = jax.random.uniform(jax.random.key(0), (20_000,))
    token, _, _ = choose(jnp.tile(jnp.log(p)[None], (20_000, 1)), u, temperature=0.5, **PLAIN)
    want = p**2 / (p**2).sum()
    got = np.bincount(token, minlength=3) / 20_000
    assert (abs(got - want) < 4 * np.sqrt(want * (1 - want) / 20_000)).all()


def test_truncation_by_hand():
    """top-p .7 of (.5, .3, .2) keeps the two that reach it; top-k 1 keeps one; log-probs stay untruncated."""
    logits = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    assert jnp.isfinite(truncate(logits, top_k=0, top_p=0.7))[0].tolist() == [False, True, True]
    assert jnp.isfinite(truncate(logits, top_k=0, top_p=1e-6))[0].tolist() == [False, True, False]
    assert jnp.isfinite(truncate(logits, top_k=1, top_p=1.0))[0].tolist() == [False, True, False]
    token, logp, _ = choose(logits, jnp.array([0.999]), temperature=1.0, top_k=0, top_p=0.7)
    assert token.tolist() == [2]
    np.testing.assert_allclose(logp, np.log([0.3]), rtol=1e-6)  # renormalised it would be log .375


@pytest.mark.parametrize(("top_k", "top_p", "mass"), [(0, 0.7, 0.8), (1, 1.0, 0.5), (0, 1.0, 1.0)])
def test_renormalised_log_probs(top_k, top_p, mass):
    """p / mass of what may be drawn, which sums to 1 over it; token, entropy and greedy decoding are as without."""
    logits = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    cut = dict(top_k=top_k, top_p=top_p)
    plain, got = (choose(logits, jnp.array([0.9]), temperature=1.0, renormalised=on, **cut) for on in (False, True))
    assert got[0] == plain[0] and got[2] == plain[2]
    np.testing.assert_allclose(got[1], plain[1] - np.log(mass), rtol=1e-6, atol=1e-7)
    sampling = Sampling(1.0, **cut, renormalised=True)
    assert sampling.choice == (1.0, top_k, top_p, True) and sampling.restricted == (mass < 1)
    greedy = choose(logits, jnp.array([0.9]), temperature=0.0, renormalised=True, **cut)
    np.testing.assert_allclose(greedy[1], np.log([0.5]), rtol=1e-6)


@pytest.mark.parametrize("logits", [[1.0, 2.0, 3.0, 3.0], [-0.0, 0.0, 0.0, -1.0], [5.0] * 600, [2.0, 9.0, 9.0, 9.0]])
def test_equal_logits_are_cut_in_the_order_of_tokens(logits):
    """Ties with the smallest kept logit all stayed: temperature 0 and top_k 1 gave tokens 2 and 3 of (1, 2, 3, 3)."""
    row, u = jnp.array([logits]), jnp.array([0.999999])
    greedy = choose(row, u, temperature=0.0, top_k=0, top_p=1.0)[0]
    for cut in (dict(top_k=1, top_p=1.0), dict(top_k=0, top_p=1e-6), dict(top_k=3, top_p=1e-6)):
        for temperature in (0.6, 1.0):
            assert choose(row, u, temperature=temperature, **cut)[0].tolist() == greedy.tolist()
    for k in (1, 2, 3):
        kept = jnp.isfinite(truncate(row, top_k=k, top_p=1.0))[0]
        assert np.flatnonzero(kept).tolist() == sorted(np.argsort(-np.array(logits), kind="stable")[:k].tolist())


def test_half_of_four_equal_tokens_is_the_first_two():
    """A nucleus of equal tokens reaches its mass with some of them."""
    assert jnp.isfinite(truncate(jnp.zeros((1, 4)), top_k=0, top_p=0.5))[0].tolist() == [True, True, False, False]


# ---- the whole sampler


def check_parity(model, params, rollouts, temperature):
    """Compare teacher-forced log-probs of whole rows with those of the sampler, which cached and refilled."""
    again = score(model, params, rollouts.tokens, temperature=temperature, chunk=4096)
    assert rollouts.sampled.any()
    np.testing.assert_allclose(np.asarray(again)[rollouts.sampled], rollouts.logp[rollouts.sampled], atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logp_equals_teacher_forcing(sharp, temperature):
    """A temperature forgotten on one side, or attention to padding, shows as a ratio ≠ 1 at the first update."""
    model, params = sharp
    rollouts = draw(model, params, ragged_prompts(10, 210), temperature=temperature)
    assert 0 < rollouts.done.mean() < 1  # both endings occur
    check_parity(model, params, rollouts, temperature)


def test_logp_equals_teacher_forcing_at_real_widths():
    """The same for two layers of Qwen3-0.6B's widths and its whole vocabulary."""
    config = dataclasses.replace(preset("qwen3-0.6b"), layers=2)
    model = Qwen3(config, dtype=jnp.float32, remat="none", kernel="xla")
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    prompts = ragged_prompts(3, config.vocab_size)
    check_parity(model, params, draw(model, params, prompts, samples=2, budget=10, slots=4), 1.0)


@pytest.fixture(scope="module")
def plain_greedy(sharp):
    """Decode one prompt at a time, without cache and slots: the whole sequence again for every token."""
    model, params = sharp

    @jax.jit
    def logits(token):
        hidden, _ = model.apply({"params": params}, token, jnp.arange(40)[None])
        return hidden[0] @ params["embed_vd"].T

    def generate(prompt, budget):
        tokens = list(prompt)
        for _ in range(budget):
            padded = np.zeros((1, 40), np.int32)
            padded[0, : len(tokens)] = tokens
            tokens.append(int(np.argmax(logits(padded)[len(tokens) - 1])))
            if tokens[-1] == EOS:
                break
        return tokens

    return generate


@pytest.mark.parametrize("schedule", [dict(slots=16), dict(slots=16, block=3, prefill_rows=1), dict(slots=64, block=5)])
@pytest.mark.parametrize("reverse", [False, True])
def test_greedy_slots_equal_a_plain_loop(sharp, plain_greedy, schedule, reverse, monkeypatch):
    """With any slot count, block and arrival order; new pages hold 1e4.

    Poison is finite on purpose: softmax gives it weight 0, and 0 · NaN would be NaN.
    """
    model, params = sharp
    monkeypatch.setattr("e3jax.sampler.slots.new_piece", poisoned_piece)
    small_pages(monkeypatch)
    prompts = ragged_prompts(20, 210, seed=3)
    order = list(range(20))[:: -1 if reverse else 1]
    rollouts = draw(model, params, [prompts[i] for i in order], samples=1, temperature=0.0, **schedule)
    for row, i in enumerate(order):
        want = plain_greedy(prompts[i], 24)
        assert rollouts.tokens[row, : rollouts.length[row]].tolist() == want


def small_pages(monkeypatch):
    """Use pages of 8 positions and pools that begin with 8 pages: samples have several, and pools grow on the way."""
    monkeypatch.setattr("e3jax.sampler.plan.PAGE", 8)


def poisoned_piece(*args):
    """Allocate new pages that hold 1e4 everywhere; freed pages hold what another sample left there."""
    return jax.tree.map(lambda x: jnp.full_like(x, 1e4), decode.new_piece(*args))


def test_samples_do_not_depend_on_the_schedule(sharp, monkeypatch):
    """The same (key, id, g) gives the same tokens for any slots, blocks, order, neighbours, and growth of the cache."""
    model, params = sharp
    prompts = ragged_prompts(12, 210)
    a = draw(model, params, prompts)
    b = draw(model, params, prompts, slots=32, block=5, prefill_rows=2)
    np.testing.assert_array_equal(a.tokens, b.tokens)
    small_pages(monkeypatch)
    paged = [draw(model, params, prompts, block=block, slots=slots) for block, slots in ((4, 64), (7, 16))]
    np.testing.assert_array_equal(paged[0].tokens, paged[1].tokens)
    np.testing.assert_array_equal(a.tokens, paged[0].tokens)
    np.testing.assert_allclose(a.logp, paged[0].logp, atol=1e-5)
    monkeypatch.undo()
    c = draw(model, params, prompts[::-1], ids=range(12)[::-1])
    for p in range(12):
        for g in range(3):
            np.testing.assert_array_equal(
                a.tokens[3 * p + g, : a.length[3 * p + g]], c.tokens[3 * (11 - p) + g, : c.length[3 * (11 - p) + g]]
            )
    other = draw(model, params, prompts, key=8)
    assert (a.tokens != other.tokens).any(), "the key is not used"
    groups = a.tokens.reshape(12, 3, -1)
    assert (groups[:, 0] != groups[:, 1]).any(), "all samples of a group are the same"


@pytest.fixture(scope="module")
def two_heads():
    """Return a model with two KV heads, one each for tensor=2; its parameters, prompts, and what one device draws."""
    model = Qwen3(dataclasses.replace(preset("tiny"), kv_heads=2), dtype=jnp.float32, remat="none", kernel="xla")
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    params = params | {"embed_vd": params["embed_vd"] * 8}
    prompts = ragged_prompts(4, 210)
    one = draw(model, params, prompts)
    return model, params, prompts, one


def test_samples_do_not_depend_on_the_mesh(two_heads):
    """4 devices draw what one draws, with the tensor axis too: this checks the layout of cache and slots."""
    model, params, prompts, one = two_heads
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        many = draw(model, jax.device_put(params, param_shardings(params, mesh)), prompts)
    np.testing.assert_array_equal(one.tokens, many.tokens)
    np.testing.assert_allclose(one.logp, many.logp, atol=1e-4)


def test_sampling_layout_draws_the_same(two_heads):
    """Parameters that training splits over fsdp are moved to tensor=2: a wrong shard would give a wrong token."""
    model, params, prompts, one = two_heads
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    layout = sampling_mesh(mesh, tensor=2)
    moved = to_sampling(jax.device_put(params, param_shardings(params, mesh)), layout, dtype=jnp.float32)
    assert moved["layers"]["wq_dnh"].sharding.shard_shape((3, 64, 2, 32)) == (3, 64, 1, 32)
    with jax.set_mesh(layout):
        many = draw(model, moved, prompts)
    np.testing.assert_array_equal(one.tokens, many.tokens)
    np.testing.assert_allclose(one.logp, many.logp, atol=1e-4)
    with pytest.raises(UserError, match=r"sampler\.tensor=3"):
        sampling_mesh(mesh, tensor=3)


def test_slices_draw_the_same(two_heads, monkeypatch):
    """On two slices each prefills every prompt, and blocks run to their end; the samples are those of one device."""
    model, params, prompts, one = two_heads
    monkeypatch.setattr("e3jax.sharding.slice_of", lambda device: device.id // 4)
    enough, rows, block, prefill = [], [], decode.decode_block, decode.prefill

    def blocks(*args, **kwargs):
        enough.append(args[4])
        return block(*args, **kwargs)

    def prefills(*args):
        cache = prefill(*args)
        rows.append((cache.k.shape[1], cache.k.sharding.shard_shape(cache.k.shape)[1]))
        return cache

    monkeypatch.setattr("e3jax.sampler.slots.decode_block", blocks)
    monkeypatch.setattr("e3jax.sampler.slots.prefill", prefills)
    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    layout = sampling_mesh(mesh, tensor=2)
    moved = to_sampling(jax.device_put(params, param_shardings(params, mesh)), layout, dtype=jnp.float32)
    with jax.set_mesh(layout):
        many = draw(model, moved, prompts)
    np.testing.assert_array_equal(one.tokens, many.tokens)
    np.testing.assert_allclose(one.logp, many.logp, atol=1e-4)
    assert set(enough) == {None} and rows and all(part == total // 2 for total, part in rows)


@pytest.mark.parametrize("tensor", [1, 2])
def test_the_layout_of_gpus_draws_the_same(two_heads, monkeypatch, tensor):
    """Layers apart, q, k and v in one product, gate and up in one: for prefills too, whole and over two devices."""
    model, params, prompts, one = two_heads
    mesh = make_mesh(data=1, fsdp=8 // tensor, tensor=tensor)
    layout = sampling_mesh(mesh, tensor=tensor)
    placed = jax.device_put(params, param_shardings(params, mesh))
    moved = mover(placed, layout, few_weights)(placed, jnp.float32, None)
    shape = moved["layers_0"]["wqkv_dkgh"].sharding.shard_shape((64, 2, 3, 32))
    assert shape == (64, 2 // tensor, 3, 32)
    on_gpu = partial(of_prefill_and_decoding, platform="gpu")
    monkeypatch.setattr(slots_module, "of_prefill_and_decoding", lambda *args, platform: on_gpu(*args))
    with jax.set_mesh(layout):
        many = draw(model, moved, prompts)
    np.testing.assert_array_equal(one.tokens, many.tokens)
    np.testing.assert_allclose(one.logp, many.logp, atol=1e-4)


def test_lengths_masks_and_eos(sharp):
    """EOS is inside the mask, the prompt is not, the budget cuts at exactly `budget` response tokens."""
    model, params = sharp
    prompts = ragged_prompts(10, 210)
    r = draw(model, params, prompts)
    for b in range(len(r.tokens)):
        start, end = r.prompt_len[b], r.length[b]
        assert r.tokens[b, :start].tolist() == prompts[b // 3]
        assert r.sampled[b].nonzero()[0].tolist() == list(range(start, end))
        assert (r.tokens[b, end - 1] == EOS) == r.done[b]
        assert EOS not in r.tokens[b, start : end - 1]
        assert r.done[b] or end - start == 24
        assert (r.tokens[b, end:] == PAD).all()
        assert (r.logp[b][~r.sampled[b]] == 0).all()


def test_any_of_several_tokens_ends_a_response(sharp):
    """Qwen3 names two ending tokens; if only the first counted, a chat would run on into the next turn."""
    model, params = sharp
    prompts = ragged_prompts(10, 210)
    one = draw(model, params, prompts)
    several = (EOS, *np.unique(one.tokens[one.sampled])[::40].tolist())
    more = draw(model, params, prompts, stop=several)
    ended_by = set()
    for b in range(len(more.tokens)):
        start, end = one.prompt_len[b], one.length[b]
        stops = np.flatnonzero(np.isin(one.tokens[b, start:end], several))
        assert more.done[b] == (len(stops) > 0)
        assert more.length[b] == (start + stops[0] + 1 if len(stops) else end)
        np.testing.assert_array_equal(more.tokens[b, : more.length[b]], one.tokens[b, : more.length[b]])
        ended_by.add(int(more.tokens[b, more.length[b] - 1]))
    assert len(ended_by & set(several)) > 2 and 0 < more.done.mean() < 1


def test_a_budget_for_every_request(sharp):
    """Each response is the same as with the common budget, cut at its own; the widest need not be the longest."""
    model, params = sharp
    prompts, stop = ragged_prompts(6, 210), (EOS, *range(2, 12))
    one = draw(model, params, prompts, stop=stop)
    budgets = np.random.default_rng(0).integers(1, 25, 18)
    each = draw(model, params, prompts, stop=stop, budget=budgets)
    want = np.minimum(one.length, one.prompt_len + budgets)
    np.testing.assert_array_equal(each.length, want)
    assert (each.done == (one.done & (one.length <= want))).all() and 0 < each.done.mean() < one.done.mean()
    for b in range(18):
        np.testing.assert_array_equal(each.tokens[b, : want[b]], one.tokens[b, : want[b]])


def test_a_draining_queue_moves_to_fewer_slots(sharp, monkeypatch):
    """Slots halve, then halve again, and pages are packed on the way; none of it shows in the samples."""
    model, params = sharp
    prompts, used, block = ragged_prompts(16, 210), [], decode.decode_block
    budgets = np.where(np.arange(32) % 9, 6, 90)

    def counted(*args, **kwargs):
        used.append((args[3].live_j.shape[0], sum(piece.k.shape[1] for piece in args[2].pools[0])))
        return block(*args, **kwargs)

    small_pages(monkeypatch)
    monkeypatch.setattr("e3jax.sampler.slots.decode_block", counted)
    r = draw(model, params, prompts, samples=2, budget=budgets, slots=32, stop=(-1,))
    assert used[0][0] == 32 and {8} == {slots for slots, _ in used[3:]}
    monkeypatch.setattr("e3jax.sampler.slots.FEWEST", 64)
    np.testing.assert_array_equal(
        r.tokens, draw(model, params, prompts, samples=2, budget=budgets, slots=32, stop=(-1,)).tokens
    )
    check_parity(model, params, r, 1.0)


@pytest.mark.parametrize("cache", [pytest.param("compute", marks=SLOW), "int8"])
def test_one_pool_of_all_layers_draws_the_same(sharp, cache, monkeypatch):
    """As on a TPU, where the model loops over its layers: refilled, grown and packed, it draws what a CPU draws."""
    model, params = sharp
    pools, block = [], decode.decode_block

    def counted(*args, **kwargs):
        pools.append(len(args[2].pools))
        return block(*args, **kwargs)

    def drawn():
        budgets = np.where(np.arange(40) % 9, 6, 90)
        pools.clear()
        r = draw(model, params, ragged_prompts(20, 210), samples=2, budget=budgets, slots=32, stop=(-1,), cache=cache)
        return r, set(pools)

    small_pages(monkeypatch)
    monkeypatch.setattr("e3jax.sampler.slots.decode_block", counted)
    own, used = drawn()
    assert used == {model.config.layers}
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    together, used = drawn()
    assert used == {1}
    np.testing.assert_array_equal(own.tokens, together.tokens)
    np.testing.assert_allclose(own.logp, together.logp, atol=2e-5)


def test_sequences_of_tokens_end_a_response(sharp):
    """Two tokens end a response at the second one, but not where the first is the prompt's last token."""
    model, params = sharp
    prompts = ragged_prompts(10, 210)
    one = draw(model, params, prompts)
    pairs = [tuple(one.tokens[b, one.prompt_len[b] + 3 : one.prompt_len[b] + 5].tolist()) for b in (0, 4, 9)]
    across = tuple(one.tokens[20, one.prompt_len[20] - 1 : one.prompt_len[20] + 1].tolist())
    more = draw(model, params, prompts, stop=(EOS, *pairs, across))
    for b in range(30):
        response = one.tokens[b, one.prompt_len[b] : one.length[b]].tolist()
        ends = [i + 2 for i in range(len(response) - 1) if tuple(response[i : i + 2]) in {*pairs, across}]
        want = min([*ends, len(response)])
        assert more.length[b] - more.prompt_len[b] == want
        assert more.done[b] == (bool(ends) or one.done[b])
    assert all(more.done[b] for b in (0, 4, 9))


def test_prompts_longer_than_a_chunk(sharp, monkeypatch):
    """With prefill in chunks a later chunk must see the earlier ones' keys."""
    model, params = sharp
    prompts = [p * 9 for p in ragged_prompts(4, 210)]
    assert max(map(len, prompts)) > 48
    monkeypatch.setattr("e3jax.sampler.decode.CHUNK", 16)
    decode.prefill.clear_cache()
    check_parity(model, params, draw(model, params, prompts), 1.0)
    decode.prefill.clear_cache()


def test_int8_cache(sharp):
    """Half the bytes of bfloat16; log-probs lie within the error that README states, and are not exact."""
    model, params = sharp
    prompts = ragged_prompts(10, 210)
    rollouts = draw(model, params, prompts, cache="int8")
    again = np.asarray(score(model, params, rollouts.tokens, temperature=1.0, chunk=4096))
    gap = abs(again - rollouts.logp)[rollouts.sampled]
    assert 1e-6 < gap.mean() < 0.02 and gap.max() < 0.3, (gap.mean(), gap.max())


def test_int8_by_hand():
    """The largest entry is 127 steps; zeros stay zeros; no entry is off by more than half a step."""
    x = jnp.array([[1.0, -2.54, 0.005, 0.0], [0.0, 0.0, 0.0, 0.0]])
    values, scale = quantize(x)
    np.testing.assert_allclose(scale, [0.02, 0.0], rtol=1e-6)
    assert values.tolist() == [[50, -127, 0, 0], [0, 0, 0, 0]]


def test_slots_are_busy_and_prompts_are_prefilled_once(sharp):
    """Slow samplers let freed slots wait for the end of a block, or prefill one prompt G times."""
    model, params = sharp
    prompts, stats = ragged_prompts(40, 210), {}
    rng = np.random.default_rng(0)
    budgets = np.minimum(rng.lognormal(3.0, 0.7, 160), 100).astype(int) + 1
    draw(model, params, prompts, samples=4, budget=budgets, stop=(-1,), slots=16, block=32, stats=stats)
    assert stats["occupancy"] > 0.9, stats
    assert stats["prefilled"] == sum(map(len, prompts))
    assert stats["first_token_s"] > 0


def test_there_are_no_more_slots_and_rows_than_work(sharp, monkeypatch):
    """64 rows were prefilled for 3 prompts and 16 slots decoded for 3 responses, for nothing."""
    model, params = sharp
    prompts, made = ragged_prompts(3, 210), []
    usual = draw(model, params, prompts, samples=1, budget=6, slots=2, prefill_rows=2)
    for name in ("empty_slots", "prefill"):
        real = getattr(slots_module, name)
        monkeypatch.setattr(slots_module, name, lambda *a, real=real, name=name: made.append((name, a)) or real(*a))
    r = draw(model, params, prompts, samples=1, budget=6, slots=512, prefill_rows=64)
    np.testing.assert_array_equal(r.tokens, usual.tokens)
    sizes = {name: a[0] if name == "empty_slots" else a[2].shape[0] for name, a in made}
    assert sizes == {"empty_slots": 3, "prefill": 3}


def test_a_long_limit_costs_nothing_until_it_is_used(sharp, monkeypatch):
    """Positions allocated and attended follow the live length: 32 short responses with budgets of 200 and of 2,000."""
    model, params = sharp
    made, read = [], []
    piece, block = decode.new_piece, decode.decode_block

    def counted(*args, **kwargs):
        read.append(int((np.asarray(args[2].owner_x) >= 0).sum()))
        return block(*args, **kwargs)

    monkeypatch.setattr("e3jax.sampler.slots.new_piece", lambda *a: made.append(a[1]) or piece(*a))
    monkeypatch.setattr("e3jax.sampler.slots.decode_block", counted)
    seen = []
    for limit in (200, 2000):
        made.clear(), read.clear()
        draw(model, params, ragged_prompts(8, 210), samples=4, stop=range(2, 210), budget=limit)
        seen.append((list(made), list(read)))
    assert seen[0] == seen[1] and sum(made) == 16 and max(read) <= 16  # of 64 positions, for 16 slots


def test_what_is_drawn_is_reported(sharp):
    """Guards against a token that is lost, doubled or reported for another response to a person who reads along."""
    model, params = sharp
    tokens, logps, finished = {}, {}, []

    def on_tokens(row, new, logp):
        assert len(new) == len(logp) > 0
        tokens.setdefault(row, []).extend(new.tolist())
        logps.setdefault(row, []).extend(logp.tolist())

    def on_finished(rows, so_far):
        for b in rows:
            finished.append(int(b))
            assert len(tokens[int(b)]) == so_far.length[b] - so_far.prompt_len[b]

    r = draw(model, params, ragged_prompts(20, 210), slots=8, block=3, on_tokens=on_tokens, on_finished=on_finished)
    assert sorted(finished) == list(range(60)) and len(r.tokens) == 60
    for b in range(60):
        assert tokens[b] == r.tokens[b, r.prompt_len[b] : r.length[b]].tolist()
        assert logps[b] == r.logp[b, r.prompt_len[b] : r.length[b]].tolist()


def test_bad_requests_are_refused(sharp):
    model, params = sharp
    with pytest.raises(ValueError, match="2048"):
        draw(model, params, [[5]], budget=2048)
    with pytest.raises(ValueError, match="empty"):
        draw(model, params, [[]])
    for budget in (0, [3, 0], -1):  # each drew a token
        with pytest.raises(ValueError, match=r"has a budget of (0|-1) tokens: give each response 1 or more"):
            draw(model, params, [[5], [6]], samples=1, budget=budget)
