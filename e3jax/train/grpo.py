"""GRPO stages: sample, grade, compare within a group, update.

Path to the equation: configs/*.py -> train/curriculum.py -> here -> losses/grpo.py. The reward is rewards/shaping.py.
The algorithm alone, on one page: examples/minimal_grpo.py.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.compiling import compile_all
from e3jax.errors import are_counts, dotted_path, need, need_at_least_one, need_choice
from e3jax.losses.advantages import BINARY, BRPO, Advantage
from e3jax.losses.e2c import PlanWeights, exploration_weights
from e3jax.losses.grpo import GrpoLoss, TokenWeights, grpo_loss, negative_mass
from e3jax.losses.surrogates import COVARIANCE
from e3jax.models.lora import trained, with_trained
from e3jax.models.qwen3 import Qwen3
from e3jax.phases import NO_TAGS, tag_ids
from e3jax.rewards.shaping import RewardSettings
from e3jax.rollout.likelihood import row_groups
from e3jax.rollout.rollouts import Graded
from e3jax.runtime import put
from e3jax.train.carry_over import NOTHING, carry_groups, check_waiting, read_carried, write_carried
from e3jax.train.credit import choose_tokens, compared, rewarded, token_advantages, weigh
from e3jax.train.drawing import draw_groups
from e3jax.train.faults import Skips, save_or_stop
from e3jax.train.logprobs import forward, gradient_of, score, update_jit
from e3jax.train.packing import MiniBatch, Packed, enough_rows, micro_batch_shapes, pack_micro_batches, padding
from e3jax.train.run import Run, Stage
from e3jax.train.selection import problems_of
from e3jax.train.state import apply_gradients, learning_rate, make_optimizer, new_state
from e3jax.train.step_records import alarms, describe, log_samples, step_metrics, timings
from e3jax.types import Batch, Rollouts, TrainState

OLD_LOGP = ("trainer", "sampler")
RESTRICTED = ("refuse", "renormalise")  # top-p and top-k in training: train/check.py


@dataclass(frozen=True, kw_only=True)
class GrpoStage(Stage):
    """An RL stage: config.grpo, with the stage's own values over it."""

    source: Any  # which problems: numbers or digits of a generator, or the name of a set
    budget: int | str  # tokens of a response; "auto": Eq. 2 chooses
    prompts: int  # per step
    group_size: int  # responses per prompt
    rounds: int  # of drawing `prompts` problems, until as many groups have spread (train/drawing.py); 1: off
    carry_over: int  # most steps that an unfinished response may go on (train/carry_over.py); 0: off
    overdue: str  # what has gone on so long and is not complete is waited for ("finish"), or drawn again ("drop")
    over_sampling: float  # share of groups that are drawn in addition and thrown away (train/carry_over.py); 0: off
    temperature: float
    minibatches: int  # optimiser updates per step
    rows: int  # packed rows of a micro-batch
    old_logp: str  # log-probs before the update: recomputed by the "trainer", or kept from the "sampler"
    restricted_sampling: str  # what RL does when top-p or top-k restricts its samples
    drop_above: float  # leaves out problems whose mean score in the stages before was higher; 1: none
    prompt_tokens: tuple  # leaves out problems whose prompts have fewer or more tokens than these two; (): none
    parity_alarm: float  # warn above this mean |sampler's - trainer's log-prob|, nats
    samples_logged: int  # responses a step in samples.jsonl
    advantage: Advantage
    weights: TokenWeights
    e2c: PlanWeights
    reward: RewardSettings
    loss: GrpoLoss

    def __post_init__(self):
        super().__post_init__()
        need_at_least_one(self, "prompts", "rounds", "minibatches")
        check_waiting(self)
        need(self.rows >= 0, "rows", self.rows, "use 0 (as many as memory holds) or more")
        need(self.group_size >= 2, "group_size", self.group_size, "a group of one has no baseline, use 2 or more")
        need(0 < self.drop_above <= 1, "drop_above", self.drop_above, "use a rate above 0, or 1 for off")
        p = self.prompt_tokens
        two = not p or (len(p) == 2 and are_counts(p) and p[0] <= p[1])
        need(two, "prompt_tokens", self.prompt_tokens, "use the fewest and the most tokens of a prompt, or () for off")
        need(self.temperature > 0, "temperature", self.temperature, "must be above 0: greedy samples have no log-prob")
        need(self.parity_alarm > 0, "parity_alarm", self.parity_alarm, "must be above 0")
        need(self.samples_logged >= 0, "samples_logged", self.samples_logged, "use 0 (none) or more")
        need_choice(self, "old_logp", OLD_LOGP)
        need_choice(self, "restricted_sampling", RESTRICTED)
        self.check_advantage()
        allowed = "use a number of tokens, or 'auto' for Eq. 2"
        known = self.budget != "auto" and need(are_counts([self.budget]), "budget", self.budget, allowed)
        buffer, most = self.reward.overlong_buffer, f"at most the budget of stage {self.name}, {self.budget}"
        need(not known or buffer <= self.budget, "reward.overlong_buffer", buffer, most)
        divides = self.minibatches >= 1 and self.prompts % self.minibatches == 0
        if dotted_path("prompts").startswith("stages."):  # name the field that the stage set
            whole = f"must be a multiple of {dotted_path('minibatches')}={self.minibatches}"
            need(divides, "prompts", self.prompts, whole)
        else:
            need(divides, "minibatches", self.minibatches, f"must divide {dotted_path('prompts')}={self.prompts}")

    def check_advantage(self) -> None:
        """Refuse advantages that groups of this size, or rewards of this kind, do not have."""
        a, most = self.advantage, f"at most group_size={self.group_size}"
        need(a.kind != "pass_at_k" or a.k <= self.group_size, "advantage.k", a.k, most)
        need(a.keep <= self.group_size, "advantage.keep", a.keep, most)
        allowed = "reads right and wrong: switch off all other terms of config.grpo.reward"
        need(self.reward.binary or a.kind not in BINARY, "advantage.kind", a.kind, allowed)
        w = self.weights
        signless = w.gradients == "all" and w.no_spread == "keep"
        allowed = "has an advantage a token: use gradients='all' and no_spread='keep' of config.grpo.weights"
        need(a.kind != BRPO or signless, "advantage.kind", a.kind, allowed)
        fits = a.kind != BRPO or not are_counts([self.budget]) or a.pieces <= self.budget
        need(fits, "advantage.pieces", a.pieces, f"at most the budget, {self.budget} tokens")

    @property
    def selects(self) -> bool:
        """Return whether it leaves out problems of its set (train/selection.py)."""
        return self.reads_drawn or len(self.prompt_tokens) > 0

    @property
    def reads_drawn(self) -> bool:
        """Return whether it wants to know what the stages before it drew."""
        return self.drop_above < 1

    @property
    def responses(self) -> int:
        """Return how many responses a step has."""
        return self.prompts * self.group_size


@partial(update_jit, static_argnames=("model", "temperature", "chunk", "loss"))
def grpo_gradient(model: Qwen3, params, batch: Batch, *, temperature: float, chunk: int, loss: GrpoLoss):
    """Return gradients and metrics of `grpo_loss` on one micro-batch; summed, they are those of the minibatch.

    Exact, because `batch.weight` already holds the minibatch's denominator (tests/test_train_grpo.py).
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

    return gradient_of(loss_of, params)


@partial(jax.jit, donate_argnums=0)
def add(total, more):
    """Return gradients and metrics of two micro-batches together: sums, and the larger `gap_max`."""
    (grads, metrics), largest = jax.tree.map(jnp.add, total, more), jnp.maximum(total[1]["gap_max"], more[1]["gap_max"])
    return grads, metrics | {"gap_max": largest}


class Terms(NamedTuple):
    """Per-token inputs of the loss. Log-probs: a list per minibatch of one [rows, width] array per micro-batch."""

    weight_bt: np.ndarray
    advantage_bt: np.ndarray
    old_logp: list[list[jax.Array | np.ndarray]]
    ref_logp: list[list[jax.Array | np.ndarray]]
    chosen_bt: np.ndarray | None  # Clip-Cov's and KL-Cov's tokens, of the minibatches so far; None for the others


def update(
    run: Run,
    tx,
    state: TrainState,
    graded: Graded,
    advantage: np.ndarray,
    reference,
    stage: GrpoStage,
    *,
    lambda_bt: np.ndarray | None = None,
) -> tuple[TrainState, dict[str, float], Callable[[], list[Batch]]]:
    """Make all optimiser updates of one RL step.

    The prompts are split into `stage.minibatches`; each is computed in micro-batches whose gradients add up exactly.
    `advantage`: one a response [B], or one a token [B, T]. `lambda_bt` [B, T] multiplies the advantages of tokens
    (losses/e2c.py); None: 1 everywhere.

    Returns the state, metrics (parity/… compares sampler and trainer before the first update), and a function that
    rebuilds the first minibatch's batches, for a replay dump.
    """
    r, policy = graded.rollouts, with_trained(reference, state.params)
    minibatches = split(run, r, stage)
    terms = Terms(
        weight_bt=weigh(run, r, minibatches, advantage, stage),
        advantage_bt=token_advantages(advantage, lambda_bt, shape=r.tokens.shape),
        old_logp=old_log_probs(run, policy, r, minibatches, stage),
        ref_logp=[],
        chosen_bt=np.zeros(r.tokens.shape, bool) if stage.loss.surrogate in COVARIANCE else None,
    )
    has_kl = bool(stage.loss.kl_coef)  # without it the old log-probs only fill the slot
    ref = score_all(run, reference, r, minibatches, stage) if has_kl else terms.old_logp
    terms = terms._replace(ref_logp=ref)  # every log-prob is taken before the first update
    values = []
    for i, minibatch in enumerate(minibatches):
        if terms.chosen_bt is not None:
            whole = state.replace(params=policy)
            terms.chosen_bt[minibatch.index] = chosen(run, whole, r, minibatch, terms, i, stage)
        grads, sums = sum_gradients(run, policy, batches(run, r, minibatch, terms, i), stage)
        count = (terms.weight_bt[minibatch.index] != 0).sum()
        parity = {"parity/logp_max": sums.pop("gap_max"), "parity/logp_mean": sums.pop("gap_sum") / max(count, 1)}
        state, optim = apply_gradients(tx, state, grads)
        policy = with_trained(reference, state.params)
        mass = negative_mass(terms.weight_bt[minibatch.index], terms.advantage_bt[minibatch.index])
        losses = {f"loss/{k}": v for k, v in sums.items() if has_kl or k != "kl"}
        values.append((parity, losses | {f"optim/{k}": v for k, v in optim.items()} | {"grad/negative_mass": mass}))
    metrics = {name: float(np.mean([float(v[name]) for _, v in values])) for name in values[0][1]}
    metrics |= {name: float(value) for name, value in values[0][0].items()}  # the first: still the sampler's parameters
    metrics["pack/padding"] = padding([m for minibatch in minibatches for m in minibatch.packed])
    metrics["grad/masked"] = 1 - float(((terms.weight_bt != 0) & r.sampled).sum() / r.sampled.sum())
    return state, metrics, lambda: list(batches(run, r, minibatches[0], terms, 0))


def split(run: Run, r: Rollouts, stage: GrpoStage) -> list[MiniBatch]:
    """Split a step's responses into minibatches of whole groups; pack each into micro-batches of a few fixed shapes."""
    shapes = shapes_of(run, stage)
    longest = int(r.prompt_len.max())
    advice = f"a prompt of this step has {longest} tokens: use {longest} or more"
    need(r.length.max() <= shapes[0][1], "task.prompt_room", run.prompt_room, advice)
    parts = np.split(np.arange(len(r.tokens)), stage.minibatches)  # rows are prompt-major
    packed = (pack_micro_batches(r.length[part], shapes) for part in parts)
    return [MiniBatch(part, [m.of(part) for m in micro]) for part, micro in zip(parts, packed)]


def shapes_of(run: Run, stage: GrpoStage) -> list[tuple[int, int]]:
    """Return the shapes of this stage's micro-batches, the same in every step."""
    return micro_batch_shapes(run.prompt_room + stage.budget, stage.rows, groups=row_groups())


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
            chosen=None if terms.chosen_bt is None else m.take(terms.chosen_bt),
        )


def chosen(
    run: Run, state: TrainState, r: Rollouts, minibatch: MiniBatch, terms: Terms, number: int, stage: GrpoStage
) -> np.ndarray:
    """Return which tokens of minibatch `number` Clip-Cov or KL-Cov chooses, under the parameters before its update.

    Costs a forward pass for every minibatch but the first, whose old log-probs are these where the trainer made them.
    """
    old = logp = terms.old_logp[number]
    if number or stage.old_logp != "trainer":
        logp = score_packed(run, state.params, r, minibatch.packed, temperature=stage.temperature)
    rng = np.random.default_rng([run.seed, stage.index, int(state.step)])  # the same after a resume
    return choose_tokens(minibatch, logp, old, terms, stage.loss, rng=rng)[minibatch.index]


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

    With LoRA the reference shares the frozen matrices: beside the policy's adapters there are those of the start.
    Resumes from the newest checkpoint and gives the same numbers: problems and noise are functions of (seed, step).
    """
    name, steps, tags = stage.name, stage.steps, tag_ids(run.tokenizer)
    tagged = stage.e2c.coefficient != 1 or stage.reward.following != "off"
    need(tags or not tagged, f"stages.{name}", [asdict(stage.e2c), asdict(stage.reward)], NO_TAGS)
    stage = replace(stage, rows=enough_rows(stage.rows, stage.responses // stage.minibatches, groups=row_groups()))
    draw = problems_of(run, stage)
    tx = make_optimizer(run.optim, lr=stage.lr, warmup=stage.warmup, decay_steps=0)
    reference = params
    store = run.store(name)
    done, state = store.newest(new_state(tx, jax.tree.map(jnp.copy, trained(params))))
    run.log.rewind(name, done)
    skips = Skips(run, name, kind="grpo", temperature=stage.temperature, loss=asdict(stage.loss))
    if done < steps:
        compile_ahead(run, tx, state, params, stage)
    sampling = run.sampling(stage.temperature, budget=stage.budget)
    sampling = replace(sampling, renormalised=stage.restricted_sampling == "renormalise")
    carried = read_carried(run, stage, done) if stage.carry_over else NOTHING
    rolled, summary, read = 0, "", partial(run.grader.submit, **stage.reward.options)
    of = "" if stage.carry_over or stage.over_sampling else f"/{stage.responses}"  # else more are drawn than trained on

    def show_progress(finished: int) -> None:
        nonlocal rolled
        rolled += finished
        phase.advance(0, f"rollouts {rolled}{of}  {summary}")

    with run.log.phase(f"{name}: GRPO, budget {stage.budget}", total=steps) as phase:
        phase.advance(done)
        for step in range(done, steps):
            start, rolled = time.monotonic(), 0
            how = dict(draw=draw, sampling=sampling, on_finished=show_progress)
            policy = with_trained(params, state.params)
            if stage.carry_over or stage.over_sampling:
                graded, drawn, carried = carry_groups(run, policy, stage, step, carried, **how)
            else:
                graded, drawn = draw_groups(run, policy, stage, step, **how, read=read)
            sampled_at = time.monotonic()
            r = graded.rollouts
            reward_b, reward_metrics = rewarded(graded, stage)
            how = dict(read=run.grader.submit, decode=run.tokenizer.decode)
            advantage_b, advantage = compared(graded, reward_b, stage, **how)
            plan = asdict(stage.e2c)
            lambda_bt = exploration_weights(r.tokens, r.prompt_len, r.length, tags=tags, **plan) if tags else None
            state, values, rebuild = update(run, tx, state, graded, advantage, reference, stage, lambda_bt=lambda_bt)
            updated_at = time.monotonic()
            how = dict(group_size=stage.group_size, turns=sampling.environment is not None)
            values |= step_metrics(graded, advantage_b, tags, **how) | reward_metrics
            # a renormalised log-prob is not the trainer's, by as much as top-p and top-k leave out
            others = stage.carry_over or (sampling.restricted and sampling.renormalised)
            limits = dict(weights=stage.weights, parity_alarm=math.inf if others else stage.parity_alarm)
            for alarm in alarms(graded, values, advantage_b, **limits):
                run.log.say(f"{name}, step {step + 1}: {alarm}")
            values |= {"budget": stage.budget, "optim/lr": learning_rate(state)}
            values |= drawn | timings(graded, start=start, sampled_at=sampled_at, end=updated_at)
            run.log.metrics(name, "grpo", step=step + 1, global_step=stage.first_step + step + 1, values=values)
            log_samples(run, name, step + 1, graded, advantage_b, stage.samples_logged)
            summary = describe(values)
            phase.advance(1, summary)
            skips.heed(step + 1, values["optim/skipped"] == 1, with_trained(params, state.params), rebuild)
            beside = partial(write_carried, run, stage, step + 1, carried) if stage.carry_over else None
            save_or_stop(run, store, name, step + 1, steps, state, rank=run.rank(values), beside=beside)
    store.close(steps, state)
    return with_trained(params, state.params)


def compile_ahead(run: Run, tx, state: TrainState, params, stage: GrpoStage) -> None:
    """Compile the programs of this stage's update, with a progress line, so that no step waits for compilation.

    The shapes are in shapes.jsonl too. The sampler's programs depend on its requests: they are compiled when needed.
    """
    shapes = shapes_of(run, stage)
    if all(line["stage"] != stage.name for line in run.log.read("shapes.jsonl")):
        run.log.append("shapes.jsonl", {"stage": stage.name, "shapes": shapes})
    scored = stage.old_logp == "trainer" or bool(stage.loss.kl_coef)
    fixed = dict(temperature=stage.temperature, chunk=run.chunk)
    with run.log.phase(f"{stage.name}: compiling", total=len(shapes) * (1 + scored) + 2) as phase:
        first = {}
        for rows, width in shapes:  # lowering is Python's work, and compiling is not
            i, f = (put(np.zeros((rows, width), dtype), "BT") for dtype in (np.int32, np.float32))
            size = f"{rows} x {width} tokens"
            if scored:
                first[f"log-probs of {size}"] = score.lower(run.model, params, i, i, i, **fixed)
            batch = Batch(i, i, i, f, f, f, f, f)
            if stage.loss.surrogate in COVARIANCE:
                batch = batch.replace(chosen=put(np.zeros((rows, width), bool), "BT"))
            first[f"gradient of {size}"] = grpo_gradient.lower(run.model, params, batch, **fixed, loss=stage.loss)
        *_, made = compile_all(first, phase)
        second = {"sum of gradients": add.lower(made, made), "AdamW": apply_gradients.lower(tx, state, made[0])}
        compile_all(second, phase)
        phase.advance(0, "")
