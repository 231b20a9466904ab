"""GRPO stages: roll out, grade, advantages, update.

Path to the equation: configs/*.py -> train/curriculum.py -> here -> losses/grpo.py.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import are_counts, need, need_at_least_one, need_choice, place
from e3jax.losses.e2c import PlanWeights, exploration_weights
from e3jax.losses.grpo import (
    Advantage,
    GrpoLoss,
    TokenWeights,
    group_advantages,
    grpo_loss,
    negative_mass,
    token_weights,
)
from e3jax.metrics.training import phase_metrics, rollout_metrics
from e3jax.models.qwen3 import Qwen3
from e3jax.phases import NO_TAGS, tag_ids
from e3jax.rewards.plan import RewardSettings, shaped
from e3jax.rollout.likelihood import row_groups
from e3jax.rollout.rollouts import Graded, feature_means, rollout
from e3jax.runtime import put
from e3jax.sharding import constrain_params
from e3jax.tasks.grade import nothing_read
from e3jax.tokenizer import pieces
from e3jax.train.closing import closing_mask
from e3jax.train.faults import Skips, save_or_stop
from e3jax.train.logprobs import forward, score
from e3jax.train.packing import Packed, enough_rows, pack_micro_batches, padding, row_widths
from e3jax.train.run import Run
from e3jax.train.stage import Stage
from e3jax.train.state import apply_gradients, learning_rate, make_optimizer, new_state
from e3jax.types import Batch, Rollouts, TrainState

TOKENS_LOGGED = 2048  # of a response in samples.jsonl, 25 bytes each: a bucket gets the whole file every half minute
OLD_LOGP = ("trainer", "sampler")


@dataclass(frozen=True, kw_only=True)
class GrpoStage(Stage):
    """An RL stage: config.grpo and what the stage says instead."""

    source: Any  # which problems: numbers or digits of a generator, or the name of a set
    budget: int | str  # tokens of a response; "auto": Eq. 2 chooses
    prompts: int  # per step
    group_size: int  # responses per prompt
    temperature: float
    minibatches: int  # optimiser updates per step
    rows: int  # of a micro-batch
    old_logp: str  # of the policy before the update: computed by the "trainer", or as the "sampler" said
    parity_alarm: float  # nats between the two that are told
    samples_logged: int  # responses a step in samples.jsonl
    advantage: Advantage
    weights: TokenWeights
    e2c: PlanWeights
    reward: RewardSettings
    loss: GrpoLoss

    def __post_init__(self):
        super().__post_init__()
        need_at_least_one(self, "prompts", "minibatches", "rows")
        need(self.group_size >= 2, "group_size", self.group_size, "a group of one has no baseline, use 2 or more")
        need(self.temperature > 0, "temperature", self.temperature, "must be above 0: greedy samples have no log-prob")
        need(self.parity_alarm > 0, "parity_alarm", self.parity_alarm, "must be above 0")
        need(self.samples_logged >= 0, "samples_logged", self.samples_logged, "use 0 (none) or more")
        need_choice(self, "old_logp", OLD_LOGP)
        allowed = "use a number of tokens, or 'auto' for Eq. 2"
        counted = self.budget != "auto" and need(are_counts([self.budget]), "budget", self.budget, allowed)
        buffer, most = self.reward.overlong_buffer, f"at most the budget of stage {self.name}, {self.budget}"
        need(not counted or buffer <= self.budget, "reward.overlong_buffer", buffer, most)
        divides = self.minibatches >= 1 and self.prompts % self.minibatches == 0
        if place("prompts").startswith("stages."):
            whole = f"must be a multiple of {place('minibatches')}={self.minibatches}"
            need(divides, "prompts", self.prompts, whole)
        else:
            need(divides, "minibatches", self.minibatches, f"must divide {place('prompts')}={self.prompts}")

    @property
    def responses(self) -> int:
        """Return how many responses a step has."""
        return self.prompts * self.group_size


@partial(jax.jit, static_argnames=("model", "temperature", "chunk", "loss"))
def grpo_gradient(model: Qwen3, params, batch: Batch, *, temperature: float, chunk: int, loss: GrpoLoss):
    """Return gradients and metrics of `grpo_loss` on one micro-batch; sums over micro-batches are the mini-batch's.

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
        value, metrics = grpo_loss(logp, entropy, batch, loss)
        gap = jnp.where(batch.weight != 0, jnp.abs(logp - batch.rollout_logp), 0.0)
        return value, {"total": value, **metrics, "gap_sum": gap.sum(), "gap_max": gap.max()}

    grads, metrics = jax.grad(loss_of, has_aux=True)(params)
    return constrain_params(grads), metrics


@partial(jax.jit, donate_argnums=0)
def add(total, more):
    """Return gradients and metrics of two micro-batches together: sums, and the larger `gap_max`."""
    (grads, metrics), largest = jax.tree.map(jnp.add, total, more), jnp.maximum(total[1]["gap_max"], more[1]["gap_max"])
    return grads, metrics | {"gap_max": largest}


class MiniBatch(NamedTuple):
    """The responses of one optimiser update."""

    rows: np.ndarray  # of the rollouts
    packed: list[Packed]  # where they lie in its micro-batches


class Terms(NamedTuple):
    """What the loss of a step is made of, beside the rollouts; host arrays [B, T], or one a micro-batch, [R, W]."""

    weight_bt: np.ndarray
    advantage_bt: np.ndarray
    old_logp: list[list[jax.Array | np.ndarray]]  # of a minibatch, of a micro-batch
    ref_logp: list[list[jax.Array | np.ndarray]]


def update(
    run: Run,
    tx,
    state: TrainState,
    graded: Graded,
    advantage_b: np.ndarray,
    reference,
    stage: GrpoStage,
    *,
    lambda_bt: np.ndarray | None = None,
) -> tuple[TrainState, dict[str, float], Callable[[], list[Batch]]]:
    """Make all optimiser updates of one RL step; return the state, metrics, and what makes its first batches again.

    `stage.minibatches` of prompts, each in exact micro-batches of packed rows. How far sampler and trainer are apart is
    measured before any update, in parity/…. `lambda_bt` [B, T] multiplies the advantages of tokens (losses/e2c.py);
    None: 1 everywhere. The batches are host arrays, but for the log-probs.
    """
    r = graded.rollouts
    minibatches = split(run, r, stage)
    terms = Terms(
        weight_bt=weigh(run, r, minibatches, advantage_b, stage),
        advantage_bt=spread(advantage_b, lambda_bt, shape=r.tokens.shape),
        old_logp=old_log_probs(run, state.params, r, minibatches, stage),
        ref_logp=[],
    )
    anchored = bool(stage.loss.kl_coef)  # else there is no reference to measure a KL against
    ref = score_all(run, reference, r, minibatches, stage) if anchored else terms.old_logp
    terms = terms._replace(ref_logp=ref)  # every old log-prob is taken before the first update
    values = []
    for i, minibatch in enumerate(minibatches):
        grads, sums = sum_gradients(run, state.params, batches(run, r, minibatch, terms, i), stage)
        trained = (terms.weight_bt[minibatch.rows] != 0).sum()
        parity = {"parity/logp_max": sums.pop("gap_max"), "parity/logp_mean": sums.pop("gap_sum") / max(trained, 1)}
        state, optim = apply_gradients(tx, state, grads)
        mass = negative_mass(terms.weight_bt[minibatch.rows], terms.advantage_bt[minibatch.rows])
        loss = {f"loss/{k}": v for k, v in sums.items() if anchored or k != "kl"}
        values.append((parity, loss | {f"optim/{k}": v for k, v in optim.items()} | {"grad/negative_mass": mass}))
    metrics = {name: float(np.mean([float(v[name]) for _, v in values])) for name in values[0][1]}
    metrics |= {name: float(value) for name, value in values[0][0].items()}  # of the old policy's log-probs
    metrics["pack/padding"] = padding([m for minibatch in minibatches for m in minibatch.packed])
    metrics["grad/masked"] = 1 - float(((terms.weight_bt != 0) & r.sampled).sum() / r.sampled.sum())
    return state, metrics, lambda: list(batches(run, r, minibatches[0], terms, 0))


def split(run: Run, r: Rollouts, stage: GrpoStage) -> list[MiniBatch]:
    """Split a step's responses into minibatches of whole groups, and pack each into micro-batches of few widths."""
    widths = row_widths(run.prompt_room + stage.budget)  # the same in every step of the stage
    longest = int(r.prompt_len.max())
    advice = f"a prompt of this step has {longest} tokens: use {longest} or more"
    need(r.length.max() <= widths[0], "task.prompt_room", run.prompt_room, advice)
    parts = np.split(np.arange(len(r.tokens)), stage.minibatches)  # rows are prompt-major
    packed = (pack_micro_batches(r.length[part], rows=stage.rows, widths=widths) for part in parts)
    return [MiniBatch(part, [m.of(part) for m in micro]) for part, micro in zip(parts, packed)]


def weigh(run: Run, r: Rollouts, minibatches: list[MiniBatch], advantage_b: np.ndarray, stage: GrpoStage) -> np.ndarray:
    """Return each token's weight [B, T] in its minibatch's loss: mask / denominator (losses/grpo.py token_weights)."""
    mask = r.sampled.astype(np.float32)  # EOS is sampled: stopping is an action and is trained
    w = stage.weights
    closing_bt = mask < 0
    if w.gradients == "no-eos":
        closing_bt = closing_mask(run.tokenizer, r, closing=w.closing, match=w.closing_match)
    weight_bt = np.zeros_like(mask)
    for rows, _ in minibatches:
        weight_bt[rows] = token_weights(
            mask[rows],
            advantage_b=advantage_b[rows],
            closing_bt=closing_bt[rows],
            max_length=stage.budget,
            aggregation=w.aggregation,
            gradients=w.gradients,
            denominator=w.denominator,
        )
    return weight_bt


def spread(advantage_b: np.ndarray, lambda_bt: np.ndarray | None, *, shape: tuple[int, int]) -> np.ndarray:
    """Return every token's advantage [B, T] float32: its response's, times λ where there is one."""
    advantage_bt = np.broadcast_to(advantage_b[:, None], shape).astype(np.float32)
    return advantage_bt if lambda_bt is None else advantage_bt * lambda_bt


def old_log_probs(run: Run, params, r: Rollouts, minibatches: list[MiniBatch], stage: GrpoStage) -> list[list]:
    """Return the log-probs of the policy before the update, as `stage.old_logp` says: computed, or the sampler's."""
    if stage.old_logp == "sampler":
        return [[m.take(r.logp) for m in minibatch.packed] for minibatch in minibatches]
    return score_all(run, params, r, minibatches, stage)


def score_all(run: Run, params, r: Rollouts, minibatches: list[MiniBatch], stage: GrpoStage) -> list[list[jax.Array]]:
    """Return the log-probs of every minibatch's tokens under `params`."""
    return [score_packed(run, params, r, minibatch.packed, temperature=stage.temperature) for minibatch in minibatches]


def score_packed(run: Run, params, r: Rollouts, micro: Sequence[Packed], *, temperature: float) -> list[jax.Array]:
    """Return the log-probs of every micro-batch's tokens under `params`, each [rows, width], left on the devices."""
    logps = []
    for m in micro:
        placed = [put(x, "BT") for x in (m.take(r.tokens, run.tokenizer.pad), m.positions(), m.segments())]
        logps.append(score(run.model, params, *placed, temperature=temperature, chunk=run.chunk))
    return logps


def batches(run: Run, r: Rollouts, minibatch: MiniBatch, terms: Terms, number: int) -> Iterator[Batch]:
    """Yield the micro-batches of minibatch `number`: host arrays, but for log-probs that devices hold."""
    for m, old_logp, ref_logp in zip(minibatch.packed, terms.old_logp[number], terms.ref_logp[number]):
        yield Batch(
            tokens=m.take(r.tokens, run.tokenizer.pad),
            position=m.positions(),
            segment=m.segments(),
            weight=m.take(terms.weight_bt),
            advantage=m.take(terms.advantage_bt),
            old_logp=old_logp,
            ref_logp=ref_logp,
            rollout_logp=m.take(r.logp),
        )


def sum_gradients(run: Run, params, micro: Iterator[Batch], stage: GrpoStage):
    """Return gradients and metrics of a minibatch: those of its micro-batches together."""
    total = None
    for batch in micro:
        batch = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else put(x, "BT"), batch)
        how = dict(temperature=stage.temperature, chunk=run.chunk, loss=stage.loss)
        more = grpo_gradient(run.model, params, batch, **how)
        total = more if total is None else add(total, more)
    return total


def train(run: Run, params, stage: GrpoStage):
    """Train `params` for the stage's steps; the KL reference is the stage's start. Return the final parameters.

    Resumes from the stage's newest checkpoint to the same numbers: problems and noise are functions of (seed, step).
    """
    name, steps, tags = stage.name, stage.steps, tag_ids(run.tokenizer)
    tagged = stage.e2c.coefficient != 1 or stage.reward.following != "off"
    need(tags or not tagged, f"stages.{name}", [asdict(stage.e2c), asdict(stage.reward)], NO_TAGS)
    stage = replace(stage, rows=enough_rows(stage.rows, stage.responses // stage.minibatches, groups=row_groups()))
    draw = run.draw_from(stage.source, split="train")
    tx = make_optimizer(run.optim, lr=stage.lr, warmup=stage.warmup, decay_steps=0)
    reference = params
    store = run.store(name)
    done, state = store.newest(new_state(tx, jax.tree.map(jnp.copy, params)))
    run.log.rewind(name, done)
    skips = Skips(run, name, kind="grpo", temperature=stage.temperature, loss=asdict(stage.loss))
    if done < steps:
        compile_ahead(run, tx, state, stage)
    rolled, summary = 0, ""

    def heard(finished: int) -> None:
        nonlocal rolled
        rolled += finished
        phase.advance(0, f"rollouts {rolled}/{stage.responses}  {summary}")

    with run.log.phase(f"{name}: GRPO, budget {stage.budget}", total=steps) as phase:
        phase.advance(done)
        for step in range(done, steps):
            start, rolled = time.monotonic(), 0
            problems = draw(stage.first_problem + step * stage.prompts, stage.prompts)
            graded = rollout(
                run.pretrained(state.params),
                [replace(p, meta=p.meta | {"unfinished": stage.reward.unfinished}) for p in problems],
                run.sampling(stage.temperature),
                key=run.key(stage.index, step),
                samples=stage.group_size,
                budget=stage.budget,
                read=partial(run.grader.submit, following=stage.reward.following),
                on_finished=heard,
            )
            sampled_at = time.monotonic()
            r = graded.rollouts
            reward_b, rewarded = reward_of(graded, stage)
            reward_pg = reward_b.reshape(stage.prompts, stage.group_size)
            advantage_b = group_advantages(reward_pg, **asdict(stage.advantage)).reshape(-1)
            where = r.tokens, r.prompt_len, r.length
            lambda_bt = exploration_weights(*where, tags=tags, **asdict(stage.e2c)) if tags else None
            state, values, again = update(run, tx, state, graded, advantage_b, reference, stage, lambda_bt=lambda_bt)
            updated_at = time.monotonic()
            values |= step_metrics(graded, advantage_b, tags, stage) | rewarded
            for alarm in alarms(graded, values, advantage_b, stage):
                run.log.say(f"{name}, step {step + 1}: {alarm}")
            values |= {"budget": stage.budget, "optim/lr": learning_rate(state)}
            values |= timings(graded, start=start, sampled_at=sampled_at, end=updated_at)
            run.log.metrics(name, "grpo", step=step + 1, global_step=stage.first_step + step + 1, values=values)
            log_samples(run, name, step + 1, graded, advantage_b, stage.samples_logged)
            summary = describe(values)
            phase.advance(1, summary)
            skips.heed(step + 1, values["optim/skipped"] == 1, state.params, again)
            save_or_stop(run, store, name, step + 1, steps, state, rank=run.rank(values))
    store.close(steps, state)
    return state.params


def reward_of(graded: Graded, stage: GrpoStage) -> tuple[np.ndarray, dict[str, float]]:
    """Return what RL is rewarded with [B], and its metrics: correctness, plan following, length (rewards/plan.py)."""
    reward = stage.reward
    return shaped(
        graded.share_b,
        graded.score_b,
        graded.response_len_b,
        budget=stage.budget,
        following=reward.following,
        overlong_buffer=reward.overlong_buffer,
        overlong_factor=reward.overlong_factor,
    )


def step_metrics(graded: Graded, advantage_b: np.ndarray, tags, stage: GrpoStage) -> dict[str, float]:
    """Return what is logged of a step's responses: rewards, lengths, exploration, phases."""
    r = graded.rollouts
    values = rollout_metrics(
        score_b=graded.score_b,
        response_len_b=graded.response_len_b,
        done_b=r.done,
        entropy_bt=r.entropy,
        sampled_bt=r.sampled,
        reasons=graded.reasons,
        advantage_b=advantage_b,
        group_size=stage.group_size,
    )
    return values | feature_means(graded.features) | phase_metrics(r, tags)


def timings(graded: Graded, *, start: float, sampled_at: float, end: float) -> dict[str, float]:
    """Return how long a step took, its parts, and how busy the sampler was."""
    return {
        "time/step_s": end - start,
        "time/rollout_s": sampled_at - start,
        "time/first_token_s": graded.stats["first_token_s"],
        "sampler/occupancy": graded.stats["occupancy"],
        "time/update_s": end - sampled_at,
        "time/rollout_tokens_per_s": graded.rollouts.sampled.sum() / (sampled_at - start),
    }


def describe(values: dict[str, float]) -> str:
    """Return a step in one short line for the person watching."""
    return (
        f"reward {values['reward/mean']:.2f}  length {values['length/mean']:.0f}  "
        f"attempts {values['explore/attempts']:.1f}  {values['time/rollout_tokens_per_s']:.0f} tok/s"
    )


def alarms(graded: Graded, values: dict, advantage_b: np.ndarray, stage: GrpoStage) -> Iterator[str]:
    """Yield a sentence for each thing of a step that a person should know of and no error stops."""
    if values["parity/logp_mean"] > stage.parity_alarm:
        yield (
            f"sampler and trainer disagree, mean |Δ log-prob| {values['parity/logp_mean']:.3g} above "
            f"config.grpo.parity_alarm={stage.parity_alarm}"
        )
    unread = nothing_read(
        graded.reasons, graded.problems, where_field="config.task.where", prompt_field="config.task.prompt"
    )
    if unread:
        yield unread
    if stage.weights.gradients == "no-eos" and (advantage_b < 0).any() and not values["grad/masked"]:
        yield (
            f"gradients='no-eos' masked nothing: {stage.weights.closing!r} (config.grpo.weights.closing) is in none of "
            f"the {(advantage_b < 0).sum()} responses of negative advantage"
        )


def compile_ahead(run: Run, tx, state: TrainState, stage: GrpoStage) -> None:
    """Compile the programs of this stage's update, saying which, so that no step has to wait for one.

    The widths are in shapes.jsonl too. The sampler's programs follow what its requests need: compiled as they come.
    """
    rows, widths = stage.rows, row_widths(run.prompt_room + stage.budget)
    if all(line["stage"] != stage.name for line in run.log.read("shapes.jsonl")):
        run.log.append("shapes.jsonl", {"stage": stage.name, "rows": rows, "widths": widths})
    scored = stage.old_logp == "trainer" or bool(stage.loss.kl_coef)
    fixed = dict(temperature=stage.temperature, chunk=run.chunk)
    with run.log.phase(f"{stage.name}: compiling", total=len(widths) * (1 + scored) + 2) as phase:

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
            size = f"{rows} x {width} tokens"
            if scored:
                compiled(f"log-probs of {size}", score, run.model, state.params, whole, whole, whole, **fixed)
            made = compiled(
                f"gradient of {size}", grpo_gradient, run.model, state.params, batch, **fixed, loss=stage.loss
            )
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
