"""Simulate how long a step waits for its longest response: one wave, over-sampling, or responses carried over.

    lengths = Lengths(p10=60, p50=180, p90=480, budget=512)
    run = simulate(lengths.draw(rng, 2048), Work(groups=64, group_size=8, slots=512), "carry-over")
    run.occupancy, run.ticks, run.trained_length

A tick is one decode step: every slot that holds a response draws one token. A response starts in the slot that is free
first, in the order of drawing, as in sampler/slots.py. Ways to end a step of P groups of G responses:

    synchronous    P groups are drawn, and the step ends with their last response.
    over-sampling  P + extra groups are drawn; the step ends when P are complete, and the others are thrown away. Which
                   groups are complete first depends on their lengths: long responses are trained on too rarely.
    carry-over     Slots that are free take further groups; the step ends when P are complete, and the others go on
                   in the next step with the tokens that they have, which are prefilled again. Of the groups that began
                   in one step P go on, and the last ones are thrown away, whatever their lengths: in the long run every
                   length is trained on as often as it is drawn. With a bound of C steps, a group that began C steps ago
                   is waited for; where that is less than a long response takes, much is thrown away.

What is not in it: that lengths change as a model learns, the page cache's own limits, and programs that compile.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e3jax.errors import UserError

WAYS = ("synchronous", "over-sampling", "carry-over")


class Lengths(NamedTuple):
    """A law of lengths: quantiles as metrics.jsonl has them, log-linear between; the budget cuts what is longer."""

    p10: float
    p50: float
    p90: float
    budget: int

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return so many lengths, [count] int. The tails go on as their neighbours do: the logarithm is linear."""
        at, value = np.array([0.0, 0.1, 0.5, 0.9, 1.0]), np.log([self.p10, self.p50, self.p90])
        ends = value[0] - (value[1] - value[0]) / 4, value[2] + (value[2] - value[1]) / 4
        drawn = np.exp(np.interp(rng.random(count), at, [ends[0], *value, ends[1]]))
        return np.clip(np.rint(drawn), 1, self.budget).astype(int)


class Work(NamedTuple):
    """What a step trains on, and what is on its way."""

    groups: int
    group_size: int
    slots: int
    extra: int = 0  # groups that are over-sampled
    bound: int | None = None  # most steps that a carried group goes on; None: as many as it takes


class Simulated(NamedTuple):
    """Means over the steps of a simulation, the first ones left out where responses are carried over."""

    ticks: float  # decode steps of an RL step
    tokens: float  # drawn in them
    cached: float  # sum over ticks of the tokens in the cache, prompts left out
    prefilled: float  # tokens of unfinished responses that are prefilled again
    wasted: float  # tokens of responses that are thrown away
    occupancy: float  # share of slots x ticks that drew a token
    trained_length: float  # mean length of the responses that are trained on
    drawn_length: float  # … and of all that were begun
    staleness: float  # mean age in steps of a trained token; 0: drawn by the policy that is updated


def schedule(left: Sequence[int], slots: int) -> np.ndarray:
    """Return the tick at which each response begins, of `left` tokens each, in their order.

    >>> schedule([5, 2, 4, 1], 2)
    array([0, 0, 2, 5])
    """
    free, begin = [0] * min(slots, max(len(left), 1)), np.empty(len(left), int)
    for i, tokens in enumerate(left):
        begin[i] = heapq.heappop(free)
        heapq.heappush(free, begin[i] + int(tokens))
    return begin


def simulate(length_b: np.ndarray, work: Work, way: str) -> Simulated:
    """Return what training on these responses takes, in the order of drawing; they are dealt into groups.

    Raises UserError for an unknown way, or too few responses for two steps.
    """
    if way not in WAYS:
        raise UserError(f"{way!r}: use one of {', '.join(WAYS)}")
    size, slots = work.group_size, work.slots
    length_pg = length_b[: len(length_b) // size * size].reshape(-1, size)
    most = work.groups + {"synchronous": 0, "over-sampling": work.extra, "carry-over": -(-slots // size)}[way]
    if len(length_pg) < 2 * most:
        raise UserError(f"{len(length_pg)} groups are too few: give {2 * most} or more")
    flying, again = [], []  # groups on their way, and those that were thrown away
    parts = {}  # group -> tokens that each step drew of it
    begun_at, steps, trained, ages, fresh = {}, [], [], [], 0
    while fresh + most <= len(length_pg):
        groups = [*flying, *again, *range(fresh, fresh + most - len(again))]
        before_pg = np.array([sum(parts.get(g, []), np.zeros(size, int)) for g in groups])
        left_pg = length_pg[groups] - before_pg
        begin_pg = schedule(left_pg.reshape(-1), slots).reshape(left_pg.shape)
        end_p = (begin_pg + left_pg).max(axis=1)
        ticks = int(np.sort(end_p)[work.groups - 1])
        if work.bound is not None:
            overdue = [i for i, g in enumerate(flying) if begun_at[g] <= len(steps) - work.bound]
            ticks = max([ticks, *end_p[overdue].tolist()])
        first = np.flatnonzero(end_p <= ticks)[: work.groups]  # the oldest of those that are complete
        new_pg = np.clip(ticks - begin_pg, 0, left_pg)
        begun = [i for i in range(len(groups)) if i < len(flying) or begin_pg[i, 0] < ticks]
        for i in begun:
            parts.setdefault(groups[i], []).append(new_pg[i])
            begun_at.setdefault(groups[i], len(steps))
        others = [i for i in begun if i not in set(first)]
        goes_on = [i for i in others if i < len(flying)] + [i for i in others if i >= len(flying)][: work.groups]
        thrown = [i for i in others if i not in set(goes_on)] if way == "carry-over" else others
        steps.append(
            (
                ticks,
                new_pg.sum(),
                (new_pg * before_pg + new_pg * (new_pg + 1) / 2).sum(),
                before_pg[left_pg > 0].sum(),
                new_pg[thrown].sum(),
                new_pg.sum() / max(ticks * slots, 1),
            )
        )
        trained.append(length_pg[[groups[i] for i in first]])
        for i in first:
            drawn = parts.pop(groups[i])
            ages += [(len(drawn) - 1 - k, int(part.sum())) for k, part in enumerate(drawn)]
        fresh += most if way == "over-sampling" else sum(groups[i] >= fresh for i in begun)
        if way == "carry-over":
            again = [groups[i] for i in thrown] + [g for g in again if g not in {groups[i] for i in begun}]
            for g in again:
                parts.pop(g, None), begun_at.pop(g, None)
            flying = [groups[i] for i in goes_on]
    settled = steps[len(steps) // 5 :] if way == "carry-over" else steps  # the first steps begin with empty hands
    return Simulated(
        *np.mean(np.array(settled, float), axis=0).tolist(),
        trained_length=float(np.mean(trained)),
        drawn_length=float(length_pg[:fresh].mean()),
        staleness=sum(age * count for age, count in ages) / max(sum(count for _, count in ages), 1),
    )
