"""Examples of supervised stages: (prompt, response, gap) in tokens, each step's a function of (seed, stage, step).

    examples = open_examples(run, stage)
    data = examples(stage.index, step, global_step)       # endless for traces, a list for a set: all of a step's

A stage names its problems and `traces` (tiny models), or `data`: E2C's causal data, or that of another domain.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from e3jax.errors import UserError, need, need_at_least_one, need_choice
from e3jax.phases import NO_TAGS, OPEN, TAGS, tag_ids, write_text
from e3jax.tasks.problem import Problem
from e3jax.tasks.stream import at
from e3jax.tasks.table import TASKS
from e3jax.train.run import Run

PROBLEMS_PER_STEP = 10_000  # problem numbers set aside for a step; far more than fit its rows
BLOCK = 16  # problems drawn and encoded together; the last block's rest is thrown away
ENCODED = 512  # examples of a set that are encoded together
Example = tuple[list[int], list[int], int]  # prompt, response, gap of positions between them
Examples = Callable[[int, int, int], Iterator[Example] | list[Example]]  # stage_index, step, global_step


@dataclass(frozen=True)
class SetData:
    """Examples of a set with explorations: a stage's `data`."""

    set: str
    part: str  # "both": E2C-SFT; "exploration": EF-SFT, the plan alone
    longer: str  # than row_length: "drop", or "cut" on the right as the original does, EOS lost
    per_step: int
    regulariser: str  # another set, whole examples of which are mixed in; "": none
    regulariser_share: float  # of a step's examples

    def __post_init__(self):
        need_choice(self, "part", ("both", "exploration"))
        need_choice(self, "longer", ("drop", "cut"))
        need_at_least_one(self, "per_step")
        share, named = self.regulariser_share, bool(self.regulariser)
        right = 0 <= share < 1 and named == (share > 0)
        allowed = f"0 without a regulariser, below 1 with one; regulariser={self.regulariser!r}"
        need(right, "regulariser_share", share, allowed)


def open_examples(run: Run, stage) -> Examples:
    """Return the source of an `SftStage`'s examples."""
    return set_examples(run, stage.data, row_length=stage.row_length) if stage.data else trace_examples(run, stage)


def trace_examples(run: Run, stage) -> Examples:
    """Return synthetic traces of the task's form.

    `position_gap`: with probability `gap_rate` the response's positions start up to so many tokens late. A tiny
    base model has seen no long text; this is how it learns to read the problem from far away (LOG.md).
    """
    draw = run.draw_from(stage.source, split="train")
    write = TASKS[run.settings.task.form].trace

    def of_step(stage_index: int, step: int, global_step: int) -> Iterator[Example]:
        rng = np.random.default_rng([run.seed, stage_index, step])
        start = global_step * PROBLEMS_PER_STEP
        while True:
            prompts, traces, gaps = [], [], []
            for problem in draw(start, BLOCK):
                prompts.append(problem.question.removesuffix(OPEN))
                traces.append(write(problem, rng, stage.traces))
                gaps.append(int(rng.integers(stage.position_gap + 1)) if rng.random() < stage.gap_rate else 0)
            tokens = run.tokenizer.encode_all([*prompts, *traces])
            for prompt, response, gap in zip(tokens, tokens[len(prompts) :], gaps):
                yield prompt, [*response, run.tokenizer.eos], gap
            start += BLOCK

    return of_step


def set_examples(run: Run, data: SetData, *, row_length: int) -> Examples:
    """Return `per_step` examples a step of a set with explorations (tasks/math.py read_plan), in epochs of new orders.

    part "both": E2C-SFT, both phases and EOS. "exploration": EF-SFT, the plan up to <EXECUTION>; then the share
    `regulariser_share` of a step's examples are whole ones of the set `regulariser`. The prompt is never trained.
    (docs/algorithms.md, E2C)
    """
    if not tag_ids(run.tokenizer):
        raise UserError(f"config.stages' data: {NO_TAGS}")
    others = round(data.per_step * data.regulariser_share) if data.regulariser else 0
    how = dict(longer=data.longer, most=row_length)
    pools = [(encoded(run, data.set, part=data.part, **how), data.per_step - others)]
    if others:
        pools.append((encoded(run, data.regulariser, part="both", **how), others))

    def of_step(stage_index: int, step: int, global_step: int) -> list[Example]:
        return [pool[at(i, len(pool), run.seed)] for pool, n in pools for i in range(step * n, (step + 1) * n)]

    return of_step


def encoded(run: Run, name: str, *, part: str, longer: str, most: int) -> list[Example]:
    """All examples of a set that have at most `most` tokens, or their first so many."""
    problems, kept, long = run.draw_from(name, split="test")(0, 1 << 60), [], 0
    with run.log.phase(f"tokens of {name}", total=len(problems)) as phase:
        for start in range(0, len(problems), ENCODED):
            together = problems[start : start + ENCODED]
            prompts = [problem.question.removesuffix(OPEN) for problem in together]
            tokens = run.tokenizer.encode_all([*prompts, *(response_text(problem, part) for problem in together)])
            for prompt, response in zip(tokens, tokens[len(prompts) :]):
                if part == "both":
                    response.append(run.tokenizer.eos)
                phase.advance(1)
                long += len(prompt) + len(response) > most
                if longer == "cut" or len(prompt) + len(response) <= most:
                    kept.append((prompt, response[: most - len(prompt)], 0))
    if long:
        run.log.say(f"{name}: {long} of {len(problems)} examples are longer than {most} tokens: {longer}")
    if not kept:
        raise UserError(f"{name}: no example fits row_length={most}: raise it")
    return kept


def response_text(problem: Problem, part: str) -> str:
    """What the model shall say of a problem of a set with explorations; UserError where the set lacks a phase."""
    for phase in ("exploration", "execution") if part == "both" else ("exploration",):
        if phase not in problem.meta or not problem.meta[phase]:
            raise UserError(f"{problem.id} has no {phase}: give a set with question, exploration and execution")
    if part == "exploration":
        return f"{TAGS[0]}{problem.meta['exploration']}{TAGS[1]}{TAGS[2]}"
    return write_text(problem.meta["exploration"], problem.meta["execution"])
