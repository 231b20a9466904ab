"""GRPO stages: roll out, grade, advantages, update.

Path to the equation: configs/*.py -> train/curriculum.py -> here -> losses/grpo.py.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import need
from e3jax.losses.e2c import exploration_weights
from e3jax.losses.grpo import group_advantages, grpo_loss, negative_mass, token_weights
from e3jax.metrics.training import phase_metrics, rollout_metrics
from e3jax.models.qwen3 import Qwen3
from e3jax.phases import NO_TAGS, tag_ids
from e3jax.rewards.plan import shaped
from e3jax.rollout.likelihood import row_groups
from e3jax.rollout.rollouts import Graded, feature_means, rollout
from e3jax.runtime import put
from e3jax.sharding import constrain_params
from e3jax.tasks.grade import nothing_read
from e3jax.tasks.stream import Stream
from e3jax.tokenizer import pieces
from e3jax.train.closing import closing_mask
from e3jax.train.faults import Skips, save_or_stop
from e3jax.train.logprobs import forward, score
from e3jax.train.packing import Packed, enough_rows, pack_micro_batches, padding, row_widths
from e3jax.train.setup import Run
from e3jax.train.state import apply_gradients, learning_rate, make_optimizer, new_state
from e3jax.types import Batch, TrainState

TOKENS_LOGGED = 2048  # of a response in samples.jsonl, 25 bytes each: a bucket gets the whole file every half minute


@partial(
    jax.jit,
    static_argnames=(
        "model",
        "temperature",
        "chunk",
        "clip_low",
        "clip_high",
        "dual_clip",
        "kl_coef",
        "kl_estimator",
        "entropy_coef",
        "tis_cap",
    ),
)
def grpo_gradient(model: Qwen3, params, batch: Batch, *, temperature: float, chunk: int, **loss):
    """Gradients and metrics of `grpo_loss` on one micro-batch; sums over micro-batches are the mini-batch's.

    Exact, because `batch.weight` already holds the mini-batch's denominator (tests/test_train_grpo.py).
    """

    def loss_of(params):
        logp, entropy = forward(
            model,
            params,
            batch.tokens,
            temperature=temperature,
            chunk=chunk,
            position_bt=batch.position,
            segment_bt=batch.segment,
        )
        value, metrics = grpo_loss(logp, entropy, batch, **loss)
        gap = jnp.where(batch.weight != 0, jnp.abs(logp - batch.rollout_logp), 0.0)
        return value, {"total": value, **metrics, "gap_sum": gap.sum(), "gap_max": gap.max()}

    grads, metrics = jax.grad(loss_of, has_aux=True)(params)
    return constrain_params(grads), metrics


@partial(jax.jit, donate_argnums=0)
def add(total, more):
    """Gradients and metrics of two micro-batches together: sums, and the larger `gap_max`."""
    (grads, metrics), largest = jax.tree.map(jnp.add, total, more), jnp.maximum(total[1]["gap_max"], more[1]["gap_max"])
    return grads, metrics | {"gap_max": largest}


def score_packed(run: Run, params, graded: Graded, micro: Sequence[Packed], *, temperature: float) -> list[jax.Array]:
    """Log-probs of every micro-batch's tokens under `params`, each [rows, width], left on the devices."""
    logps = []
    for m in micro:
        rows_bt = (m.take(graded.rollouts.tokens, run.tokenizer.pad), m.positions(), m.segments())
        placed = [put(x, "BT") for x in rows_bt]
        logps.append(score(run.model, params, *placed, temperature=temperature, chunk=run.chunk))
    return logps


def update(
    run: Run,
    tx,
    state: TrainState,
    graded: Graded,
    advantage_b: np.ndarray,
    ref_params,
    *,
    minibatches: int,
    rows: int,
    temperature: float,
    budget: int,
    old_logp: str,
    weights: dict,
    loss: dict,
    lambda_bt: np.ndarray | None = None,
) -> tuple[TrainState, dict[str, float], Callable[[], list[Batch]]]:
    """All optimiser updates of one RL step: `minibatches` of prompts, each in exact micro-batches of packed rows.

    `old_logp`: of the policy before the update, computed here ("trainer") or taken from the rollouts ("sampler", which
    saves a forward pass). How far the two are apart is in parity/…, either way measured before any update.
    `lambda_bt` [B, T] multiplies the advantages of tokens (losses/e2c.py); None: 1 everywhere.
    -> state, metrics, and what makes the first minibatch's micro-batches again, as host arrays.
    """
    r = graded.rollouts
    mask = r.sampled.astype(np.float32)  # EOS is sampled: stopping is an action and is trained
    advantage = np.broadcast_to(advantage_b[:, None], mask.shape).astype(np.float32)
    if lambda_bt is not None:
        advantage = advantage * lambda_bt
    widths = row_widths(run.prompt_room + budget)  # the same in every step of the stage
    longest = int(r.prompt_len.max())
    need(
        r.length.max() <= widths[0],
        "task.prompt_room",
        run.prompt_room,
        f"a prompt of this step has {longest} tokens: use {longest} or more",
    )
    # Rows are prompt-major: groups stay whole. Every old log-prob is taken before the first update.
    parts = np.split(np.arange(len(mask)), minibatches)
    packed = [[m.of(part) for m in pack_micro_batches(r.length[part], rows=rows, widths=widths)] for part in parts]
    if old_logp == "sampler":
        old = [[m.take(r.logp) for m in micro] for micro in packed]
    else:
        old = [score_packed(run, state.params, graded, micro, temperature=temperature) for micro in packed]
    ref = old
    if loss["kl_coef"]:
        ref = [score_packed(run, ref_params, graded, micro, temperature=temperature) for micro in packed]
    weights = dict(weights)
    ending = {"closing": weights.pop("closing"), "match": weights.pop("closing_match")}
    closing_bt = closing_mask(run.tokenizer, r, **ending) if weights["gradients"] == "no-eos" else mask < 0
    weight = np.zeros_like(mask)
    for part in parts:
        weight[part] = token_weights(
            mask[part], advantage_b=advantage_b[part], closing_bt=closing_bt[part], max_length=budget, **weights
        )

    def batches(i: int) -> Iterator[Batch]:
        for m, old_logp, ref_logp in zip(packed[i], old[i], ref[i]):
            yield Batch(
                tokens=m.take(r.tokens, run.tokenizer.pad),
                position=m.positions(),
                segment=m.segments(),
                weight=m.take(weight),
                advantage=m.take(advantage),
                old_logp=old_logp,
                ref_logp=ref_logp,
                rollout_logp=m.take(r.logp),
            )

    values = []
    for i, part in enumerate(parts):
        total = None
        for batch in batches(i):
            batch = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else put(x, "BT"), batch)
            more = grpo_gradient(run.model, state.params, batch, temperature=temperature, chunk=run.chunk, **loss)
            total = more if total is None else add(total, more)
        grads, metrics = total
        gap = {name: metrics.pop(f"gap_{name}") for name in ("sum", "max")}
        if i == 0:  # of the first minibatch, whose log-probs are those of the old policy
            parity = {"parity/logp_max": gap["max"], "parity/logp_mean": gap["sum"] / max((weight[part] != 0).sum(), 1)}
        state, optim = apply_gradients(tx, state, grads)
        values.append(
            {f"loss/{k}": v for k, v in metrics.items()}
            | {f"optim/{k}": v for k, v in optim.items()}
            | {"grad/negative_mass": negative_mass(weight[part], advantage[part])}
        )
    mean = {name: float(np.mean([float(v[name]) for v in values])) for name in values[0]}
    if not loss["kl_coef"]:
        del mean["loss/kl"]  # there was no reference to measure it against
    mean |= {name: float(value) for name, value in parity.items()}
    mean["pack/padding"] = padding([m for micro in packed for m in micro])
    mean["grad/masked"] = 1 - float(((weight != 0) & r.sampled).sum() / r.sampled.sum())
    return state, mean, lambda: list(batches(0))


def train(
    run: Run,
    params,
    *,
    stage: str,
    stage_index: int,
    first_step: int,
    first_problem: int,
    draw: Stream,
    steps: int,
    lr: float,
    warmup: int,
    budget: int,
    prompts: int,
    group_size: int,
    temperature: float,
    minibatches: int,
    rows: int,
    old_logp: str,
    parity_alarm: float,
    advantage: dict,
    weights: dict,
    e2c: dict,
    reward: dict,
    loss: dict,
    optim: dict,
    sampler: dict,
    samples_logged: int,
):
    """Train `params` for `steps` RL steps; the KL reference is the stage's start. Returns the final parameters.

    Resumes from the stage's newest checkpoint to the same numbers: problems and noise are functions of (seed, step).
    """
    tags = tag_ids(run.tokenizer)
    need(tags or (e2c["coefficient"] == 1 and reward["following"] == "off"), f"stages.{stage}", [e2c, reward], NO_TAGS)
    tx = make_optimizer(lr=lr, warmup=warmup, decay_steps=0, **optim)
    rows = enough_rows(rows, prompts * group_size // minibatches, groups=row_groups())
    ref_params = params
    store = run.store(stage)
    done, state = store.newest(new_state(tx, jax.tree.map(jnp.copy, params)))
    run.log.rewind(stage, done)
    skips = Skips(run, stage, kind="grpo", temperature=temperature, loss=loss)
    if done < steps:
        compile_ahead(
            run,
            tx,
            state,
            stage=stage,
            rows=rows,
            widths=row_widths(run.prompt_room + budget),
            scored=old_logp == "trainer" or bool(loss["kl_coef"]),
            temperature=temperature,
            loss=loss,
        )
    rolled, summary = 0, ""
    reward = dict(reward)
    unfinished = {"unfinished": reward.pop("unfinished")}  # in the problems it reaches the graders' processes

    def heard(finished: int) -> None:
        nonlocal rolled
        rolled += finished
        phase.advance(0, f"rollouts {rolled}/{prompts * group_size}  {summary}")

    with run.log.phase(f"{stage}: GRPO, budget {budget}", total=steps) as phase:
        phase.advance(done)
        for step in range(done, steps):
            start = time.monotonic()
            first = first_problem + step * prompts  # no RL stage sees another's problems
            problems = [replace(p, meta=p.meta | unfinished) for p in draw(first, prompts)]
            rolled = 0
            graded = rollout(
                run.model,
                state.params,
                run.tokenizer,
                problems,
                key=run.key(stage_index, step),
                first_id=0,
                samples=group_size,
                budget=budget,
                temperature=temperature,
                sampler=sampler,
                read=partial(run.grader.submit, following=reward["following"]),
                on_finished=heard,
            )
            sampled_at = time.monotonic()
            r = graded.rollouts
            reward_b, rewarded = shaped(graded.share_b, graded.score_b, graded.response_len_b, budget=budget, **reward)
            advantage_b = group_advantages(reward_b.reshape(prompts, group_size), **advantage).reshape(-1)
            lambda_bt = exploration_weights(r.tokens, r.prompt_len, r.length, tags=tags, **e2c) if tags else None
            state, values, batches = update(
                run,
                tx,
                state,
                graded,
                advantage_b,
                ref_params,
                minibatches=minibatches,
                rows=rows,
                temperature=temperature,
                budget=budget,
                old_logp=old_logp,
                weights=weights,
                loss=loss,
                lambda_bt=lambda_bt,
            )
            end = time.monotonic()
            values |= rollout_metrics(
                score_b=graded.score_b,
                response_len_b=graded.response_len_b,
                done_b=r.done,
                entropy_bt=r.entropy,
                sampled_bt=r.sampled,
                reasons=graded.reasons,
                advantage_b=advantage_b,
                group_size=group_size,
            )
            values |= feature_means(graded.features) | phase_metrics(r, tags) | rewarded
            for alarm in alarms(graded, values, advantage_b, weights=weights, parity_alarm=parity_alarm):
                run.log.say(f"{stage}, step {step + 1}: {alarm}")
            values |= {
                "budget": budget,
                "optim/lr": learning_rate(state),
                "time/step_s": end - start,
                "time/rollout_s": sampled_at - start,
                "time/first_token_s": graded.stats["first_token_s"],
                "sampler/occupancy": graded.stats["occupancy"],
                "time/update_s": end - sampled_at,
                "time/rollout_tokens_per_s": r.sampled.sum() / (sampled_at - start),
            }
            run.log.metrics(stage, "grpo", step=step + 1, global_step=first_step + step + 1, values=values)
            log_samples(run, stage, step + 1, graded, advantage_b, samples_logged)
            summary = (
                f"reward {values['reward/mean']:.2f}  length {values['length/mean']:.0f}  "
                f"attempts {values['explore/attempts']:.1f}  {values['time/rollout_tokens_per_s']:.0f} tok/s"
            )
            phase.advance(1, summary)
            skips.heed(step + 1, values["optim/skipped"] == 1, state.params, batches)
            save_or_stop(run, store, stage, step + 1, steps, state, rank=run.rank(values))
    store.close(steps, state)
    return state.params


def alarms(
    graded: Graded, values: dict, advantage_b: np.ndarray, *, weights: dict, parity_alarm: float
) -> Iterator[str]:
    """Yield a sentence for each thing of a step that a person should know of and no error stops."""
    if values["parity/logp_mean"] > parity_alarm:
        yield (
            f"sampler and trainer disagree, mean |Δ log-prob| {values['parity/logp_mean']:.3g} above "
            f"config.grpo.parity_alarm={parity_alarm}"
        )
    unread = nothing_read(
        graded.reasons, graded.problems, where_field="config.task.where", prompt_field="config.task.prompt"
    )
    if unread:
        yield unread
    if weights["gradients"] == "no-eos" and (advantage_b < 0).any() and not values["grad/masked"]:
        yield (
            f"gradients='no-eos' masked nothing: {weights['closing']!r} (config.grpo.weights.closing) is in none of "
            f"the {(advantage_b < 0).sum()} responses of negative advantage"
        )


def compile_ahead(
    run: Run,
    tx,
    state: TrainState,
    *,
    stage: str,
    rows: int,
    widths: list[int],
    scored: bool,
    temperature: float,
    loss: dict,
) -> None:
    """Compile the programs of this stage's update, saying which, so that no step has to wait for one.

    The widths are in shapes.jsonl too. The sampler's programs follow what its requests need: compiled as they come.
    """
    if all(line["stage"] != stage for line in run.log.read("shapes.jsonl")):
        run.log.append("shapes.jsonl", {"stage": stage, "rows": rows, "widths": widths})
    fixed = dict(temperature=temperature, chunk=run.chunk)
    with run.log.phase(f"{stage}: compiling", total=len(widths) * (1 + scored) + 2) as phase:

        def compiled(what: str, program, *arguments, **static):
            phase.advance(0, what)
            lowered = program.lower(*arguments, **static)
            ready = lowered.compile()  # the call of the same shapes finds it
            phase.advance(1)
            return jax.tree.map(
                lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
                lowered.out_info,
                ready.output_shardings,
            )

        for width in widths:
            whole, real = (put(np.zeros((rows, width), dtype), "BT") for dtype in (np.int32, np.float32))
            batch = Batch(whole, whole, whole, real, real, real, real, real)
            if scored:
                compiled(
                    f"log-probs of {rows} x {width} tokens",
                    score,
                    run.model,
                    state.params,
                    whole,
                    whole,
                    whole,
                    **fixed,
                )
            what = f"gradient of {rows} x {width} tokens"
            made = compiled(what, grpo_gradient, run.model, state.params, batch, **fixed, **loss)
        compiled("sum of gradients", add, made, made)
        compiled("AdamW", apply_gradients, tx, state, made[0])
        phase.advance(0, "")


def log_samples(run: Run, stage: str, step: int, graded: Graded, advantage_b: np.ndarray, count: int) -> None:
    """The step's first `count` responses as lines of samples.jsonl.

    Of the first TOKENS_LOGGED tokens also what each adds to the text, its entropy and its log-prob (nats).
    """
    r = graded.rollouts
    for i in range(min(count, len(graded.texts))):
        first = slice(r.prompt_len[i], min(r.length[i], r.prompt_len[i] + TOKENS_LOGGED))
        run.log.append(
            "samples.jsonl",
            {
                "stage": stage,
                "step": step,
                "problem": graded.problems[i].id,
                "prompt": graded.problems[i].question,
                "response": graded.texts[i],
                "answer": graded.problems[i].answer,
                "reward": float(graded.score_b[i]),
                "reason": graded.reasons[i],
                "length": int(graded.response_len_b[i]),
                "truncated": not bool(r.done[i]),
                "advantage": float(advantage_b[i]),
                "tokens": pieces(run.tokenizer.decode, r.tokens[i, first].tolist()),
                "entropy": [round(x, 3) for x in r.entropy[i, first].tolist()],
                "logp": [round(x, 3) for x in r.logp[i, first].tolist()],
            },
        )
