"""Plans, executions and whole chains of an E2C model, drawn once for all methods that use them.

    study = Study(bench, tags, Planning(words=True, plan_budget=512, …))
    pool = draw_plans(study, range(32))                       # {problem: [Plan, …]}
    done = execute(study, "execute", {(0, 3): pool[0][3]})    # {(problem, sample): Candidate}, greedy

A plan ends with </EXPLORATION>; where it does not (EOS, budget), we end it. A model that reads instructions (`words`)
gets the plan to execute in the user's turn too (tasks/plan_prompts.py); a tiny model with a closed vocabulary only gets
its tags.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from e3jax.errors import UserError, need_at_least_one
from e3jax.phases import NO_TAGS, TAGS, split_text, tag_ids
from e3jax.rollout.bench import Bench
from e3jax.rollout.responses import Request, Response
from e3jax.scaling.calls import Call, ask, turn_tokens
from e3jax.tasks.plan_prompts import fill
from e3jax.tasks.problem import Problem


@dataclass(frozen=True)
class Planning:
    """How an E2C model plans and executes: fields of the config."""

    words: bool  # whether the model reads instructions
    plan_budget: int  # tokens, as in all fields below
    execution_budget: int
    thought: int  # of a thought of the tree
    tokens: int  # that go through the model at once when plans are scored or embedded

    def __post_init__(self):
        need_at_least_one(self, "plan_budget", "execution_budget", "thought", "tokens")

    @property
    def chain_budget(self) -> int:
        """Return the tokens of a whole response: both phases, three tags and EOS."""
        return self.plan_budget + self.execution_budget + 4


class Study(NamedTuple):
    """One E2C model on one set. Plans and chains are sampled as the bench says, executions greedily."""

    bench: Bench
    tags: tuple[int, ...]
    planning: Planning

    @property
    def tokenizer(self):
        """Return the model's tokenizer."""
        return self.bench.pretrained.tokenizer

    @property
    def heat(self) -> dict[str, float]:
        """Return the temperature and top_p of plans and chains."""
        return {"temperature": self.bench.sampling.temperature, "top_p": self.bench.sampling.top_p}

    def question(self, p: int) -> str:
        """Return problem p in words with its instruction, without a chat template."""
        return self.bench.plain[p].question

    def begun(self, p: int) -> tuple[int, ...]:
        """Return the prompt of problem p with the forced tag behind it."""
        return (*self.bench.prompts[p], self.tags[0])

    def turn(self, words: str) -> list[int]:
        """Return the tokens of a user's turn with these words."""
        return turn_tokens(self.bench, words)


class Plan(NamedTuple):
    """A plan without its tags, and the call that drew it."""

    tokens: tuple[int, ...]
    text: str
    call: Call


class Candidate(NamedTuple):
    """A response that can be graded and vote, and what it cost."""

    text: str  # behind the forced opening tag
    done: bool
    calls: tuple[Call, ...]
    tokens: tuple[int, ...]  # of the chain, or of the execution alone
    execution: str  # without its tags


def need_tags(tokenizer, name: str) -> tuple[int, ...]:
    """Return the ids of E2C's tags; raise UserError for a model without them."""
    tags = tag_ids(tokenizer)
    if not tags:
        raise UserError(f"{name}: {NO_TAGS}")
    return tags


def graded_problem(problem: Problem) -> Problem:
    """Return the problem for graders: its prompt ends with the forced tag (phases.begins_plan)."""
    return replace(problem, question=f"{problem.question} {TAGS[0]}")


def bare(problem: Problem) -> str:
    """Return the question without instruction and chat template."""
    return problem.meta["problem"] if "problem" in problem.meta else problem.question


def as_plan(study: Study, tokens: Sequence[int], call: Call) -> Plan:
    """Return the plan that was drawn, without the tag or EOS that ended it."""
    ends = (study.tags[1], *study.tokenizer.stop)
    kept = tuple(tokens[:-1] if tokens and tokens[-1] in ends else tokens)
    return Plan(kept, study.tokenizer.decode(kept).strip(), call)


def draw_plans(study: Study, samples: Sequence[int]) -> dict[int, list[Plan]]:
    """Return {problem: plans}, the pool that all methods choose from."""
    budget, problems = study.planning.plan_budget, range(len(study.bench.prompts))
    drawn = plans(
        study, "plan", [Request(p, tuple(samples), study.begun(p), budget, 1) for p in problems], **study.heat
    )
    return {p: [drawn[p, g] for g in samples] for p in problems}


def plans(
    study: Study, part: str, requests: list[Request], *, temperature: float, top_p: float
) -> dict[tuple[int, int], Plan]:
    """Return {(problem, sample): Plan} of requests whose prompts end with the opening tag."""
    stop = (study.tags[1], *study.tokenizer.stop)
    drawn = ask(study.bench, part, requests, stop=stop, temperature=temperature, top_p=top_p)
    return {key: as_plan(study, response.tokens, call) for key, (response, call) in drawn.items()}


def execute(study: Study, part: str, chosen: dict[tuple[int, int], Plan]) -> dict[tuple[int, int], Candidate]:
    """Return greedy executions of plans, named (problem, sample) within the part, without the calls of the plans."""
    opened, closed, begun, ended = study.tags
    requests = []
    for (p, g), plan in chosen.items():
        question = study.bench.prompts[p]
        if study.planning.words:
            question = study.turn(fill("execute", problem=study.question(p), plan=plan.text))
        prompt = (*question, opened, *plan.tokens, closed, begun)
        requests.append(Request(p, (g,), prompt, study.planning.execution_budget + 1, 3))
    stop = (ended, *study.tokenizer.stop)
    drawn = ask(study.bench, part, requests, stop=stop, temperature=0.0, top_p=1.0)
    return {key: executed(study, chosen[key], r.tokens, r.done, (call,)) for key, (r, call) in drawn.items()}


def executed(study: Study, plan: Plan, tokens: Sequence[int], done: bool, calls: tuple[Call, ...]) -> Candidate:
    """Return the response that a plan and the tokens of its execution make."""
    decode, (_, closed, begun, ended) = study.tokenizer.decode, study.tags
    execution = tokens[:-1] if done and tokens and tokens[-1] == ended else tokens
    text = decode([*plan.tokens, closed, begun, *tokens])
    return Candidate(text, done, calls, tuple(tokens), decode(execution).strip())


def chains(study: Study, part: str, samples: Sequence[int], *, temperature: float) -> dict[int, list[Candidate]]:
    """Return whole responses, plan and execution in one: the greedy one, or those of self-consistency."""
    budget, problems = study.planning.chain_budget, range(len(study.bench.prompts))
    requests = [Request(p, tuple(samples), study.begun(p), budget, 1) for p in problems]
    how = dict(temperature=temperature, top_p=study.heat["top_p"] if temperature else 1.0)
    drawn = ask(study.bench, part, requests, stop=study.tokenizer.stop, **how)
    return {
        p: [whole(study, r.tokens, r.done, (call,)) for r, call in (drawn[p, g] for g in samples)] for p in problems
    }


def whole(study: Study, tokens: Sequence[int], done: bool, calls: tuple[Call, ...]) -> Candidate:
    """Return a response that was drawn in one, or in pieces."""
    text = study.tokenizer.decode(tokens)
    return Candidate(text, done, calls, tuple(tokens), split_text(text, begun=True)[1])


def tree(study: Study, depth: int) -> dict[int, list[Candidate]]:
    """Return the leaves of a tree of thoughts: each state is continued twice a level, then 2^depth leaves finish.

    Nothing is pruned: of E2C's tree only branches, depth and length are known, and a full tree whose leaves vote fits
    its cost against self-consistency [inferred]. A thought is drawn once for all leaves above it, and a tree of a lower
    depth is part of a higher one. The children of a state that ended are the state itself.
    """
    problems, stop = range(len(study.bench.prompts)), study.tokenizer.stop
    states = {p: [Candidate("", False, (), (), "")] for p in problems}

    def grow(part: str, each: int, most: int) -> dict[int, list[Candidate]]:
        """Return every state with `each` continuations of `most` tokens, or, where that is 0, up to the end."""
        requests = []
        for p in problems:
            for b, state in enumerate(states[p]):
                room = study.planning.chain_budget - len(state.tokens)
                if not state.done and room:
                    samples = tuple(range(each * b, each * b + each))
                    prompt = (*study.begun(p), *state.tokens)
                    requests.append(Request(p, samples, prompt, min(most or room, room), 1))
        drawn = ask(study.bench, part, requests, stop=stop, **study.heat)
        return {
            p: [continued(s, drawn.get((p, each * b + i))) for b, s in enumerate(states[p]) for i in range(each)]
            for p in problems
        }

    for level in range(1, depth + 1):
        states = grow(f"thought-{level}", 2, study.planning.thought)
    states = grow(f"thought-{depth}-end", 1, 0)
    return {p: [whole(study, s.tokens, s.done, s.calls) for s in states[p]] for p in problems}


def continued(state: Candidate, drawn: tuple[Response, Call] | None) -> Candidate:
    """Return the state with the tokens that were drawn behind it; the state itself where none were."""
    if drawn is None:
        return state
    response, call = drawn
    return state._replace(tokens=(*state.tokens, *response.tokens), done=response.done, calls=(*state.calls, call))
