"""Plans, executions and whole chains of an E2C model, each drawn once for all methods that ask for it (ALGORITHMS B.6).

    study = Study(bench, asked, tags, words=True, thinking=True, chat="template", plan_budget=512, …)
    pool = draw_plans(study, range(32))                       # {problem: [Plan, …]}
    runs = execute(study, "execute", {(0, 3): pool[0][3]})    # {(problem, sample): Run}, greedy

A plan ends with </EXPLORATION>; where it does not (EOS, budget), we end it. `words` says whether the model reads
instructions: an execution is then asked for with the plan in the user's turn too (tasks/plan_prompts.py); a tiny model
with a closed vocabulary only gets its own tags.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from e3jax.errors import UserError
from e3jax.phases import NO_TAGS, TAGS, split_text, tag_ids
from e3jax.rollout.bench import Bench
from e3jax.scaling.calls import Call, Request, ask, said
from e3jax.tasks.plan_prompts import fill
from e3jax.tasks.problem import Problem


class Study(NamedTuple):
    """One model on one set, and how it is asked."""

    bench: Bench
    asked: tuple[str, ...]  # the problems in words with their instruction, before any chat template
    tags: tuple[int, ...]
    words: bool
    thinking: bool
    chat: str  # its form: eval/run.py user_turn
    plan_budget: int
    execution_budget: int
    temperature: float  # of plans and chains; executions are greedy
    top_p: float
    tokens: int  # that go through the model at once when plans are scored or embedded

    @property
    def tokenizer(self):
        """The model's."""
        return self.bench.pretrained.tokenizer

    @property
    def chain_budget(self) -> int:
        """Tokens of a whole response: both phases, three tags and EOS."""
        return self.plan_budget + self.execution_budget + 4

    def begun(self, p: int) -> tuple[int, ...]:
        """The prompt of problem p with the forced tag behind it."""
        return (*self.bench.prompts[p], self.tags[0])

    def said(self, words: str) -> list[int]:
        """A user's turn in tokens."""
        return said(self.bench, words, thinking=self.thinking, chat=self.chat)


class Plan(NamedTuple):
    """A plan without tags, and the call that drew it."""

    tokens: tuple[int, ...]
    text: str
    call: Call


class Run(NamedTuple):
    """A response to be graded, and what it cost; `tokens` are those of a chain, or of an execution."""

    text: str  # behind the forced opening tag
    done: bool
    calls: tuple[Call, ...]
    tokens: tuple[int, ...]
    execution: str  # without its tags


def need_tags(tokenizer, name: str) -> tuple[int, ...]:
    """Ids of E2C's tags; UserError for a model without them."""
    tags = tag_ids(tokenizer)
    if not tags:
        raise UserError(f"{name}: {NO_TAGS}")
    return tags


def graded_problem(problem: Problem) -> Problem:
    """For graders: its prompt ends with the forced tag (phases.begins_plan)."""
    return replace(problem, question=f"{problem.question} {TAGS[0]}")


def bare(problem: Problem) -> str:
    """The question without instruction and chat."""
    return problem.meta["problem"] if "problem" in problem.meta else problem.question


def as_plan(study: Study, tokens: Sequence[int], call: Call) -> Plan:
    """What was drawn, without the tag or EOS that ended it."""
    ends = (study.tags[1], *study.tokenizer.stop)
    kept = tuple(tokens[:-1] if tokens and tokens[-1] in ends else tokens)
    return Plan(kept, study.tokenizer.decode(kept).strip(), call)


def draw_plans(study: Study, samples: Sequence[int]) -> dict[int, list[Plan]]:
    """{problem: plans}, the pool that all methods choose from."""
    asked = [Request(p, tuple(samples), study.begun(p), 1, study.plan_budget) for p in range(len(study.bench.prompts))]
    drawn = plans(study, "plan", asked, temperature=study.temperature, top_p=study.top_p)
    return {p: [drawn[p, g] for g in samples] for p in range(len(asked))}


def plans(study: Study, part: str, asked: list[Request], *, temperature: float, top_p: float):
    """{(problem, sample): Plan} of requests that end with the opening tag."""
    stop = (study.tags[1], *study.tokenizer.stop)
    drawn = ask(study.bench, part, asked, stop=stop, temperature=temperature, top_p=top_p)
    return {key: as_plan(study, response.tokens, call) for key, (response, call) in drawn.items()}


def execute(study: Study, part: str, chosen: dict[tuple[int, int], Plan]) -> dict[tuple[int, int], Run]:
    """Greedy executions of plans, named (problem, sample) within the part; their calls leave out the plans' own."""
    opened, closed, begun, ended = study.tags
    asked = []
    for (p, g), plan in chosen.items():
        question = study.bench.prompts[p]
        if study.words:
            question = study.said(fill("execute", problem=study.asked[p], plan=plan.text))
        prompt = (*question, opened, *plan.tokens, closed, begun)
        asked.append(Request(p, (g,), prompt, 3, study.execution_budget + 1))
    stop = (ended, *study.tokenizer.stop)
    drawn = ask(study.bench, part, asked, stop=stop, temperature=0.0, top_p=1.0)
    return {key: run_of(study, chosen[key], r.tokens, r.done, (call,)) for key, (r, call) in drawn.items()}


def run_of(study: Study, plan: Plan, tokens: Sequence[int], done: bool, calls: tuple[Call, ...]) -> Run:
    """The response that a plan and the tokens of its execution make."""
    decode, (_, closed, begun, ended) = study.tokenizer.decode, study.tags
    execution = tokens[:-1] if done and tokens and tokens[-1] == ended else tokens
    text = decode([*plan.tokens, closed, begun, *tokens])
    return Run(text, done, calls, tuple(tokens), decode(execution).strip())


def chains(study: Study, part: str, samples: Sequence[int], *, temperature: float) -> dict[int, list[Run]]:
    """Whole responses, plan and execution in one: greedy, and self-consistency's."""
    asked = [Request(p, tuple(samples), study.begun(p), 1, study.chain_budget) for p in range(len(study.bench.prompts))]
    how = dict(temperature=temperature, top_p=study.top_p if temperature else 1.0)
    drawn = ask(study.bench, part, asked, stop=study.tokenizer.stop, **how)
    return {
        p: [whole(study, r.tokens, r.done, (call,)) for r, call in (drawn[p, g] for g in samples)]
        for p in range(len(asked))
    }


def whole(study: Study, tokens: Sequence[int], done: bool, calls: tuple[Call, ...]) -> Run:
    """A response that was drawn in one, or in pieces."""
    text = study.tokenizer.decode(tokens)
    return Run(text, done, calls, tuple(tokens), split_text(text, begun=True)[1])


def tree(study: Study, depth: int, *, thought: int) -> dict[int, list[Run]]:
    """Tree of thoughts: each state is gone on with twice, `thought` tokens a level; 2^depth leaves are finished.

    Nothing is pruned: the notes name branches, depth and length alone, and a full tree that votes is what its cost
    against self-consistency fits [inferred]. A thought is drawn once for all leaves above it, and a tree of a lower
    depth is part of a higher one. A state that ended has itself for children.
    """
    rows, stop = range(len(study.bench.prompts)), study.tokenizer.stop
    how = dict(stop=stop, temperature=study.temperature, top_p=study.top_p)
    states = {p: [Run("", False, (), (), "")] for p in rows}

    def grown(part, each, wanted):
        """Every state with `each` continuations; `wanted` tokens, or up to the end (0)."""
        asked = []
        for p in rows:
            for b, state in enumerate(states[p]):
                room = study.chain_budget - len(state.tokens)
                if not state.done and room:
                    samples = tuple(range(each * b, each * b + each))
                    prompt = (*study.begun(p), *state.tokens)
                    asked.append(Request(p, samples, prompt, 1, min(wanted or room, room)))
        drawn = ask(study.bench, part, asked, **how)
        return {
            p: [gone_on(s, drawn.get((p, each * b + i))) for b, s in enumerate(states[p]) for i in range(each)]
            for p in rows
        }

    for level in range(1, depth + 1):
        states = grown(f"thought-{level}", 2, thought)
    states = grown(f"thought-{depth}-end", 1, 0)
    return {p: [whole(study, s.tokens, s.done, s.calls) for s in states[p]] for p in rows}


def gone_on(state: Run, drawn) -> Run:
    """The state with what was drawn behind it; itself when nothing was."""
    if drawn is None:
        return state
    response, call = drawn
    return state._replace(tokens=(*state.tokens, *response.tokens), done=response.done, calls=(*state.calls, call))
