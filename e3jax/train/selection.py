"""Which problems of its set an RL stage trains on: by the length of their prompts, and by how often they were solved.

FastCuRL (2503.17287) splits its data by the length of the prompt. POLARIS leaves out, from stage to stage, what is
solved too often. The rates are those of this run: drawn.jsonl holds every problem that its RL stages drew, with the
mean score of the group. A stage looks at the stages before it, whose lines no longer change, so that a resumed run
leaves out the same problems.

    draw = problems_of(run, stage)
    problems = draw(stage.first_problem, stage.prompts)
"""

from collections.abc import Callable, Sequence

from e3jax.errors import UserError
from e3jax.tasks.problem import Problem
from e3jax.tasks.stream import Stream
from e3jax.train.run import Run

AT_ONCE = 256  # problems that are looked at together
MOST = 1 << 20  # in a row that may be left out


def problems_of(run: Run, stage: "GrpoStage") -> Stream:  # noqa: F821 (train/grpo.py, which imports this file)
    """Return what draws the problems of a stage; without a selection, its source as it is."""
    draw = run.draw_from(stage.source, split="train")
    if not stage.selects:
        return draw
    solved = set()
    if stage.reads_drawn:
        before = [other.name for other in run.settings.stages if other.index < stage.index]
        rates = pass_rates(run.log.read("drawn.jsonl"), before)
        solved = {name for name, rate in rates.items() if rate > stage.drop_above}
        run.log.say(f"{stage.name}: leaves out {len(solved)} of the {len(rates)} problems drawn before")
    encode, bounds = run.tokenizer.encode, stage.prompt_tokens

    def keep(problem: Problem) -> bool:
        fits = not bounds or bounds[0] <= len(encode(problem.question)) <= bounds[1]
        return problem.id not in solved and fits

    return selected(draw, keep, first=stage.first_problem, name=stage.name)


def pass_rates(lines: Sequence[dict], stages: Sequence[str]) -> dict[str, float]:
    """Return the mean score of every problem over the groups that `stages` drew of it, from the lines of drawn.jsonl.

    >>> pass_rates([{"stage": "a", "problems": ["p", "q"], "scores": [1.0, 0.5]},
    ...             {"stage": "a", "problems": ["p"], "scores": [0.5]}], ["a"])
    {'p': 0.75, 'q': 0.5}
    """
    scores: dict[str, list[float]] = {}
    for line in lines:
        for name, score in zip(line["problems"], line["scores"]) if line["stage"] in stages else ():
            scores.setdefault(name, []).append(score)
    return {name: sum(of) / len(of) for name, of in scores.items()}


def selected(draw: Stream, keep: Callable[[Problem], bool], *, first: int, name: str) -> Stream:
    """Return the stream whose problems first, first + 1, … are those from `first` on that `keep` keeps, in their order.

    It looks at each problem once. UserError, with the stage's `name`, where it keeps none of MOST in a row.
    """
    kept: list[Problem] = []
    verdicts: dict[str, bool] = {}
    looked = first

    def drawn(start: int, count: int) -> list[Problem]:
        nonlocal looked
        newest = looked
        while len(kept) < start - first + count:
            for problem in draw(looked, AT_ONCE):
                if problem.id not in verdicts:
                    verdicts[problem.id] = keep(problem)
                if verdicts[problem.id]:
                    kept.append(problem)
                    newest = looked
            looked += AT_ONCE
            if looked - newest > MOST:
                raise UserError(
                    f"stage {name} leaves out every problem of its set: raise drop_above, or widen prompt_tokens"
                )
        return kept[start - first : start - first + count]

    return drawn
