"""Responses that are carried over: a step ends when enough groups are complete, and the others go on in the next step.

    carried = read_carried(run, stage, done)                     # what was on its way at this checkpoint
    graded, values, carried = carry_groups(run, params, stage, step, carried, …)
    write_carried(run, stage, step + 1, carried)                 # beside the step's checkpoint

Slots that are free take further groups, so that none waits for a step's longest response. A step trains on `prompts`
whole groups, the oldest of those that are complete. A group that began `stage.carry_over` steps ago is waited for
(`stage.overdue="finish"`), or thrown away and its problem drawn again ("drop"): no token is older. Unfinished responses
keep their tokens, and the log-probs that they were drawn with; in the next step these are prefilled under the new
weights. Importance weights are to the sampler's log-probs, since no one policy drew a response. Noise is that of the
step in which a group began, so that a resumed run draws the same; which groups a step ends with depends on slots and
block too.

Over-sampling is the simple alternative (`stage.over_sampling`): a step draws that share of groups more than it trains
on, and throws away those that are not complete when enough are. Long responses are then trained on too rarely
(tools/simulate.py says by how much), and what was drawn of them is wasted.
"""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from e3jax.errors import UserError, need, need_choice
from e3jax.rollout.rollouts import Graded, graded_of
from e3jax.runtime import from_main, out_of_memory
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Events, Requests, key_bits, sample
from e3jax.storage import read_whole, write_whole
from e3jax.tasks.problem import Problem
from e3jax.train.run import Run
from e3jax.types import Rollouts

OVERDUE = ("finish", "drop")
DIRECTORY = "carried"  # of a run: STAGE-STEP.npz beside the checkpoint of the same step


class Response(NamedTuple):
    """A response on its way; arrays [n] are of its own tokens, without the prompt's."""

    tokens: np.ndarray  # int32
    logp: np.ndarray  # float32, under the policy that drew the token
    entropy: np.ndarray  # float32
    step: np.ndarray  # int32: the step that drew it
    ended: bool
    done: bool  # ended by itself


class Group(NamedTuple):
    """The responses to one prompt."""

    begun: int  # the step
    place: int  # among the groups of that step: with the step it names the noise
    problem: int  # of the stage's problems
    responses: tuple[Response, ...]

    @property
    def complete(self) -> bool:
        """Return whether all its responses have ended."""
        return all(response.ended for response in self.responses)


class Carried(NamedTuple):
    """What is on its way between two steps, oldest first."""

    groups: list[Group]
    next_problem: int  # the first problem of the stage that has not begun
    again: tuple[int, ...] = ()  # problems before it whose groups were thrown away: they begin first


NOTHING = Carried([], 0)
UNBEGUN = Response(*(np.zeros(0, kind) for kind in (np.int32, np.float32, np.float32, np.int32)), False, False)


def check_waiting(stage: "GrpoStage") -> None:  # noqa: F821 (train/grpo.py, which imports this file)
    """Refuse a stage whose steps end in a way that its other settings do not allow."""
    early, corrected = stage.carry_over or stage.over_sampling, stage.old_logp == "sampler" or stage.loss.tis_cap
    need(stage.carry_over >= 0, "carry_over", stage.carry_over, "use 0 (off) or more steps")
    need_choice(stage, "overdue", OVERDUE)
    allowed = "a response then has several policies: set old_logp='sampler' or loss.tis_cap"
    need(not stage.carry_over or corrected, "carry_over", stage.carry_over, allowed)
    need(0 <= stage.over_sampling <= 1, "over_sampling", stage.over_sampling, "use a share from 0 (off) to 1")
    need(not stage.over_sampling or not stage.carry_over, "over_sampling", stage.over_sampling, "not with carry_over")
    allowed = "carry_over and over_sampling draw in one round: use 1"
    need(stage.rounds == 1 or not early, "rounds", stage.rounds, allowed)


def carry_groups(
    run: Run,
    params,
    stage: "GrpoStage",  # noqa: F821 (train/grpo.py, which imports this file)
    step: int,
    carried: Carried,
    *,
    draw: Callable,
    sampling: Sampling,
    on_finished: Callable[[int], None],
) -> tuple[Graded, dict[str, float], Carried]:
    """Return the responses that a step trains on, prompt-major, metrics, and what goes on in the next step."""
    fresh = stage.prompts + -(-sampling.slots // stage.group_size)  # those, and what fills the slots
    if stage.over_sampling:
        fresh = stage.prompts + math.ceil(stage.prompts * stage.over_sampling)
        carried = Carried([], step * fresh)
    groups = carried.groups + beginning(carried, step, fresh, size=stage.group_size)
    problems = [draw(stage.first_problem + group.problem, 1)[0] for group in groups]
    unfinished = {"unfinished": stage.reward.unfinished}  # graders run elsewhere and see the problem only
    problems = [replace(problem, meta=problem.meta | unfinished) for problem in problems]
    prompts = [run.tokenizer.encode(problem.question) for problem in problems]
    requests, rows = requests_of(run, stage, groups, prompts, step)
    group_b = np.array([i for i, _ in rows])
    awaited = np.array([stage.overdue == "finish" and overdue(group, stage, step) for group in groups])
    ended, stats = np.zeros(len(rows), bool), {}

    def enough(ended_b: np.ndarray) -> bool:
        ended[:] = ended_b
        complete = np.bincount(group_b[~ended_b], minlength=len(groups)) == 0
        return complete.sum() >= stage.prompts and bool(complete[awaited].all())

    events = Events(on_finished=lambda rows, _: on_finished(len(rows)), stats=stats, enough=enough)
    model, tokenizer = run.model, run.tokenizer
    layout = sampling_layout(params, tensor=sampling.tensor, dtype=model.dtype, lora=model.lora)
    with out_of_memory(sampling.less_memory), layout as weights:
        how = dict(key=jax.random.key(0), stop=tokenizer.stop, pad=tokenizer.pad, events=events)  # keys are `bits`
        rollouts = sample(model, weights, requests, sampling, **how)
    groups = with_drawn(groups, rows, rollouts, ended, step)
    taken = [i for i, group in enumerate(groups) if group.complete][: stage.prompts]
    left = kept(groups, taken, stage, step) if stage.carry_over else []
    after = following(carried, groups, [*taken, *left], left) if stage.carry_over else NOTHING
    chosen = [groups[i] for i in taken]
    ages = np.concatenate([step - r.step for group in chosen for r in group.responses])
    values = {"carry/groups": len(left), "carry/age": float(ages.mean()), "carry/oldest": int(ages.max())}
    values["carry/wasted"] = wasted(groups, [*taken, *left], step)
    repeated = [problems[i] for i in taken for _ in range(stage.group_size)]
    joined = rollouts_of(chosen, [prompts[i] for i in taken], pad=tokenizer.pad)
    return graded_of(repeated, joined, read_all(run, stage, repeated, joined), stats), values, after


def requests_of(
    run: Run, stage, groups: list[Group], prompts: list[list[int]], step: int
) -> tuple[Requests, list[tuple[int, int]]]:
    """Return what is to be sampled, and of which group and sample every response is.

    A response that goes on is a prompt of its own; the longest come first, so that like lengths are prefilled together.
    All that have tokens find a slot, since each had one. A group that begins is one prompt with all its samples.
    """
    old = [(i, g) for i, group in enumerate(groups) if group.begun < step for g in range(stage.group_size)]
    rows = [(i, g) for i, g in old if not groups[i].responses[g].ended]
    rows.sort(key=lambda row: -len(groups[row[0]].responses[row[1]].tokens))
    texts = [[*prompts[i], *groups[i].responses[g].tokens.tolist()] for i, g in rows]
    numbers = [(g,) for _, g in rows]
    for i, group in enumerate(groups):
        if group.begun == step:
            texts.append(prompts[i])
            numbers.append(tuple(range(stage.group_size)))
            rows += [(i, g) for g in range(stage.group_size)]
    budgets = [stage.budget - len(groups[i].responses[g].tokens) for i, g in rows]
    begun = np.array([groups[i].begun for i, _ in rows])
    place, number = np.array([groups[i].place for i, _ in rows]), np.array([g for _, g in rows], np.int32)
    bits = None
    for one in np.unique(begun):
        mine = begun == one
        some = key_bits(run.key(stage.index, int(one)), place[mine], number[mine])
        bits = np.zeros((len(rows), *some.shape[1:]), some.dtype) if bits is None else bits
        bits[mine] = some
    return Requests(texts, range(len(texts)), numbers, budgets, bits), rows


def with_drawn(groups: list[Group], rows: list, rollouts: Rollouts, ended: np.ndarray, step: int) -> list[Group]:
    """Return the groups with what a step drew of them; `rows` say which response each row of the rollouts is."""
    responses = [list(group.responses) for group in groups]
    for b, (i, g) in enumerate(rows):
        new, old = slice(rollouts.prompt_len[b], rollouts.length[b]), responses[i][g]
        count = int(rollouts.length[b] - rollouts.prompt_len[b])
        responses[i][g] = Response(
            np.concatenate([old.tokens, rollouts.tokens[b, new]]),
            np.concatenate([old.logp, rollouts.logp[b, new]]),
            np.concatenate([old.entropy, rollouts.entropy[b, new]]),
            np.concatenate([old.step, np.full(count, step, np.int32)]),
            bool(ended[b]),
            bool(rollouts.done[b]),
        )
    return [group._replace(responses=tuple(some)) for group, some in zip(groups, responses)]


def beginning(carried: Carried, step: int, count: int, *, size: int) -> list[Group]:
    """Return the groups that may begin in a step, at least `count`: first those of problems that are drawn again."""
    more = range(carried.next_problem, carried.next_problem + max(count - len(carried.again), 0))
    return [Group(step, i, problem, (UNBEGUN,) * size) for i, problem in enumerate([*carried.again, *more])]


def overdue(group: Group, stage, step: int) -> bool:
    """Return whether tokens of a group would be older than allowed if it went on after this step."""
    return group.begun < step and group.begun <= step - stage.carry_over


def kept(groups: list[Group], taken: list[int], stage, step: int) -> list[int]:
    """Return which groups go on: those that have begun, but of one step no more than a step can train on.

    Else not all could be trained on in time. The others are thrown away.
    """
    others = sorted(set(range(len(groups))) - set(taken))
    before = [i for i in others if groups[i].begun < step and not overdue(groups[i], stage, step)]
    begun = [i for i in others if groups[i].begun == step and any(len(r.tokens) for r in groups[i].responses)]
    return before + begun[: stage.prompts]


def following(carried: Carried, groups: list[Group], used: list[int], left: list[int]) -> Carried:
    """Return what the next step begins with; `used` groups were trained on or go on, which `left` do."""
    newest = max([carried.next_problem - 1, *(groups[i].problem for i in used)])
    unused = [groups[i].problem for i in sorted(set(range(len(groups))) - set(used))]
    return Carried([groups[i] for i in left], newest + 1, tuple(n for n in unused if n <= newest))


def wasted(groups: list[Group], used: list[int], step: int) -> float:
    """Return the share of the tokens drawn in this step that belong to groups which nobody goes on with."""
    drawn = np.array([sum((r.step == step).sum() for r in group.responses) for group in groups])
    return float(1 - drawn[used].sum() / max(drawn.sum(), 1))


def rollouts_of(groups: list[Group], prompts: list[list[int]], *, pad: int) -> Rollouts:
    """Return the responses of complete groups as rollouts, prompt-major."""
    responses = [(prompt, r) for prompt, group in zip(prompts, groups) for r in group.responses]
    length = np.array([len(prompt) + len(r.tokens) for prompt, r in responses], np.int32)
    shape = len(responses), int(length.max())
    tokens, sampled = np.full(shape, pad, np.int32), np.zeros(shape, bool)
    logp, entropy = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for b, (prompt, r) in enumerate(responses):
        tokens[b, : len(prompt)] = prompt
        own = slice(len(prompt), length[b])
        tokens[b, own], logp[b, own], entropy[b, own], sampled[b, own] = r.tokens, r.logp, r.entropy, True
    prompt_len = np.array([len(prompt) for prompt, _ in responses], np.int32)
    done = np.array([r.done for _, r in responses])
    return Rollouts(tokens, prompt_len, length, logp, entropy, sampled, done)


def read_all(run: Run, stage, problems: list[Problem], r: Rollouts) -> dict:
    """Return this process's part of the responses with their texts, and the readings that are under way."""
    rows = range(jax.process_index(), len(problems), jax.process_count())
    texts = [run.tokenizer.decode(r.tokens[b, r.prompt_len[b] : r.length[b]].tolist()) for b in rows]
    graded = [problems[b] for b in rows], texts, [bool(r.done[b]) for b in rows]
    readings = run.grader.submit(*graded, **stage.reward.options)
    return {b: (text, readings, k) for k, (b, text) in enumerate(zip(rows, texts))}


# ---- beside a checkpoint

NAMES = ("tokens", "logp", "entropy", "step")


def where(run: Run, stage, step: int):
    """Return the file of what was on its way after `step` steps of a stage."""
    return run.workdir / DIRECTORY / f"{stage.name}-{step}.npz"


def write_carried(run: Run, stage, step: int, carried: Carried) -> None:
    """Write what is on its way beside the checkpoint of `step`; files of checkpoints that are gone go too."""
    responses = [r for group in carried.groups for r in group.responses]
    arrays = {
        "groups": np.array([group[:3] for group in carried.groups], np.int64).reshape(-1, 3),
        "next_problem": np.array(carried.next_problem),
        "again": np.array(carried.again, np.int64),
        "lengths": np.array([len(r.tokens) for r in responses], np.int64),
        "flags": np.array([[r.ended, r.done] for r in responses], bool).reshape(-1, 2),
    }
    for name, empty in zip(NAMES, UNBEGUN):
        arrays[name] = np.concatenate([empty, *(getattr(r, name) for r in responses)])
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)

    def write() -> None:
        path = where(run, stage, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
        there = {p.name for p in (run.workdir / "checkpoints" / stage.name).glob("*")} | {str(step)}
        for old in path.parent.glob(f"{stage.name}-*.npz"):
            if old.stem.rpartition("-")[2] not in there:
                old.unlink()

    from_main(write)


def read_carried(run: Run, stage, step: int) -> Carried:
    """Return what was on its way at the checkpoint of `step`; UserError where its file cannot be read."""
    if not step:
        return NOTHING
    path = where(run, stage, step)
    content = from_main(partial(read_whole, path))
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ends = np.cumsum(arrays["lengths"])[:-1]
        parts = zip(*(np.split(arrays[name], ends) for name in NAMES))
        responses = [Response(*part, *map(bool, flags)) for part, flags in zip(parts, arrays["flags"])]
        size = stage.group_size
        groups = [
            Group(*map(int, about), tuple(responses[i * size : (i + 1) * size]))
            for i, about in enumerate(arrays["groups"])
        ]
        return Carried(groups, int(arrays["next_problem"]), tuple(arrays["again"].tolist()))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(
            f"{path}, the responses on their way at checkpoint {step} of stage {stage.name}, cannot be read ({error}): "
            f"remove that checkpoint, and the stage goes on from the one before it"
        ) from error
