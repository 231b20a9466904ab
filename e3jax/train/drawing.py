"""The responses of an RL step; with dynamic sampling, of further problems until enough groups have spread.

Dynamic sampling is DAPO's (docs/algorithms.md): groups whose responses all score alike have no advantage, so a step
draws its number of problems again, in at most `stage.rounds` rounds, until as many groups as it trains on have spread.
A step owns the problems that it may draw, whether or not it needs them: which these are, and their noise, is a function
of (seed, stage, step, round), so that a resumed run draws the same. All that were drawn are in drawn.jsonl, and without
dynamic sampling too where a later stage wants to know (train/selection.py).
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import jax
import numpy as np

from e3jax.rollout.rollouts import Graded, rollout
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import widened
from e3jax.train.run import Run
from e3jax.types import Rollouts

ROUND_KEY = 1 << 30  # a further round's key is that of the step folded with this and more: no problem has such a number


def draw_groups(
    run: Run,
    params,
    stage: "GrpoStage",  # noqa: F821 (train/grpo.py, which imports this file)
    step: int,
    *,
    draw: Callable,
    sampling: Sampling,
    read: Callable,
    on_finished: Callable[[int], None],
) -> tuple[Graded, dict[str, float]]:
    """Return the responses that a step trains on, prompt-major, and metrics of all that were drawn (none: one round).

    Of groups with spread the first; where all rounds have too few, groups without fill up, so that every step has as
    many responses. They keep the order in which they were drawn.
    """
    rounds, key, enough = [], run.key(stage.index, step), 0
    unfinished = {"unfinished": stage.reward.unfinished}  # graders run elsewhere and see the problem only
    while len(rounds) < stage.rounds and enough < stage.prompts:
        number = len(rounds)
        problems = draw(stage.first_problem + (step * stage.rounds + number) * stage.prompts, stage.prompts)
        graded = rollout(
            run.pretrained(params),
            [replace(p, meta=p.meta | unfinished) for p in problems],
            sampling,
            key=jax.random.fold_in(key, ROUND_KEY + number) if number else key,
            samples=stage.group_size,
            budget=stage.budget,
            read=read,
            on_finished=on_finished,
        )
        rounds.append(graded)
        enough += int(spread(graded, stage.group_size).sum())
    if stage.rounds == 1:
        if any(other.reads_drawn and other.index > stage.index for other in run.settings.stages):
            log_drawn(run, stage, step, rounds, np.arange(stage.prompts))
        return rounds[0], {}
    kept = chosen_groups(np.concatenate([spread(graded, stage.group_size) for graded in rounds]), stage.prompts)
    log_drawn(run, stage, step, rounds, kept)
    everything = joined(rounds, pad=run.tokenizer.pad)
    values = {
        "drawn/problems": len(rounds) * stage.prompts,
        "drawn/spread": enough / (len(rounds) * stage.prompts),
        "drawn/reward": float(everything.score_b.mean()),
        "drawn/tokens": int(everything.rollouts.sampled.sum()),
    }
    return of_groups(everything, kept, stage.group_size), values


def spread(graded: Graded, group_size: int) -> np.ndarray:
    """Return which groups have responses of unequal scores, bool [P]."""
    score_pg = graded.score_b.reshape(-1, group_size)
    return score_pg.max(axis=1) != score_pg.min(axis=1)


def chosen_groups(spread_p: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of `count` groups, ascending: the first with spread, and of the others as many as are missing.

    >>> chosen_groups(np.array([False, True, False, True, True]), 4)
    array([0, 1, 3, 4])
    """
    return np.sort(np.argsort(~spread_p, kind="stable")[:count])


def joined(rounds: list[Graded], *, pad: int) -> Graded:
    """Return the responses of all rounds as one; the sampler's occupancy is their mean, its counts are sums."""
    width = max(graded.rollouts.tokens.shape[1] for graded in rounds)
    wide = [widened(graded.rollouts, width, pad) for graded in rounds]
    stats = rounds[0].stats | {"occupancy": float(np.mean([graded.stats["occupancy"] for graded in rounds]))}
    stats |= {name: sum(graded.stats[name] for graded in rounds) for name in ("prefilled", "shared_pages")}
    together = {name: list(chain(*(getattr(graded, name) for graded in rounds))) for name in LISTS}
    together |= {name: np.concatenate([getattr(graded, name) for graded in rounds]) for name in ARRAYS}
    return Graded(rollouts=Rollouts(*map(np.concatenate, zip(*wide))), stats=stats, **together)


LISTS = ("problems", "texts", "reasons", "features", "parts", "rewards")  # fields of Graded with one entry a response
ARRAYS = ("score_b", "response_len_b", "share_b")


def of_groups(graded: Graded, groups: np.ndarray, size: int) -> Graded:
    """Return the responses of some groups, in this order."""
    rows = (groups[:, None] * size + np.arange(size)).reshape(-1)
    some = {name: [getattr(graded, name)[i] for i in rows] for name in LISTS}
    some |= {name: getattr(graded, name)[rows] for name in ARRAYS}
    return graded._replace(rollouts=Rollouts(*(x[rows] for x in graded.rollouts)), **some)


def log_drawn(run: Run, stage, step: int, rounds: list[Graded], kept: np.ndarray) -> None:
    """Append a line to drawn.jsonl for each round: its problems, their mean scores, which of them are trained on."""
    for number, graded in enumerate(rounds):
        first = number * stage.prompts
        line = {"stage": stage.name, "step": step + 1, "round": number}
        line["problems"] = [problem.id for problem in graded.problems[:: stage.group_size]]
        line["scores"] = graded.score_b.reshape(-1, stage.group_size).mean(axis=1).tolist()
        line["kept"] = sorted(int(i) - first for i in kept if first <= i < first + stage.prompts)
        run.log.append("drawn.jsonl", line)
