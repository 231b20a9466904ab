r"""E2C's ReAct loop: execute a plan, and where it does not arrive, refine it or take another (its tts/tts_methods.py).

    1 judge   one of K plans is executed, greedily, in chunks: a loop ends it
    2 accept  a final \boxed{} with enough before it and not too much behind; else, where the execution got stuck, a
              rescue asks for the box alone
    3 refine  the plan, from the end of the execution and the formulas that the model itself took back; <= 3 rounds
    4 next    stuck: an unused plan without the words it was stuck with, the refined one, any unused one, or a new one
              that avoids those words; not stuck: the refined one, or an unused one where refining changed nothing

No correctness signal is used. Tokens of plans, judge, refinement, rescue and executions all count.

    ended = react(study, pool, picks, 8, React(accept="box", rounds=3, chunk=256, …))      # {problem: Candidate}

All problems go through a round together; rules are pure functions. Models without `words` are told nothing: a refined
plan is then one drawn at the refinement's temperature, a new one at exploration's, and nothing is rescued (ours).
Where E2C's code leaves a rule open, the choice is ours and a comment says so.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from e3jax.errors import need
from e3jax.phases import TAGS
from e3jax.rewards.countdown_plans import read_execution
from e3jax.rewards.extract import last_boxed
from e3jax.rollout.responses import Request
from e3jax.scaling.calls import Call, ask
from e3jax.scaling.planning import Candidate, Plan, Study, bare, execute, executed, plans
from e3jax.tasks.plan_prompts import WRONG, fill
from e3jax.tasks.problem import Problem

BEFORE, BEHIND = 300, 500  # characters around a final box (E2C's code)
SAME, ALIKE = 0.85, 0.75  # overlap of words (E2C's code): a refinement changed nothing; a plan was tried already
FEWEST_LETTERS, MOST_WORDS = 5, 8  # of words that a plan was stuck with (ours)
ACCEPT = ("box", "form", "target")
REFINED, NEW = "refined", "new"
NEGATED = re.compile(
    r"\b(wrong|incorrect|mistaken?|false|contradict\w*|not (?:true|right|correct|valid|hold)|"
    r"does(?:n't| not) hold|can(?:not|'t) be)\b",
    re.IGNORECASE,
)
# an equation's left side has 80 characters at most and \( \) does not nest, so that the work stays linear
FORMULA = re.compile(r"\$[^$\n]+\$|\\\((?:(?!\\\().)+?\\\)|[^\s=.,;]{1,80} ?= ?[^\s=,;]*[^\s=,;.]")


@dataclass(frozen=True)
class React:
    """A config's `react` section."""

    accept: str  # the rule of `accepted`
    rounds: int  # refinements
    chunk: int  # tokens of an execution between looks for a loop
    tail: int  # characters of an execution's end that a refinement sees
    refine_budget: int
    refine_temperature: float
    explore_temperature: float
    rescue_budget: int

    def __post_init__(self):
        need(self.accept in ACCEPT, "accept", self.accept, f"use one of {', '.join(ACCEPT)}")
        need(self.chunk >= 4, "chunk", self.chunk, "use 4 or more: a loop is a piece of a quarter of it")


# ---- rules


def loops(tokens: Sequence[int], chunk: int) -> bool:
    """Return whether the last `chunk` tokens repeat a piece of at most a quarter of them (ours; E2C's rule is unknown).

    >>> loops([9, 1, 2, 1, 2, 1, 2, 1, 2], 8), loops([1, 2, 3, 4, 1, 2, 3, 4], 8)
    (True, False)
    """
    last = np.asarray(tokens[-chunk:])
    return len(last) == chunk and any((last[n:] == last[:-n]).all() for n in range(1, chunk // 4 + 1))


def guarded(tokens: Sequence[int], chunk: int) -> tuple[int, bool]:
    """Return how many tokens a generation in chunks draws before the guard ends it, and whether the guard does."""
    for end in range(chunk, len(tokens), chunk):
        if loops(tokens[:end], chunk):
            return end, True
    return len(tokens), False


def accepted(problem: Problem, execution: str, *, rule: str) -> bool:
    r"""Return whether an execution arrives, as far as its form tells.

    "box": it has a \boxed{} with BEFORE characters or more before it, and BEHIND or fewer after it. Countdown with
    plans has no box: "form" wants well-formed arithmetic, "target" arithmetic that ends in the target, too, which the
    question states.
    """
    if rule == "box":
        at = execution.rfind("\\boxed")
        inside = last_boxed(execution)
        return bool(inside) and at >= BEFORE and len(execution) - at - len("\\boxed{}") - len(inside) <= BEHIND
    read = read_execution(execution)
    if read is None or not read[1]:
        return False
    return rule == "form" or read[1][-1].value == problem.meta["target"]


def overlap(a: str, b: str) -> float:
    """Return the share of the words of both texts that are in both.

    >>> overlap("Add both numbers", "add them")
    0.25
    """
    one, other = ({*text.casefold().split()} for text in (a, b))
    return len(one & other) / max(len(one | other), 1)


def stuck_words(plan: str, tail: str, question: str) -> set[str]:
    """Return the words an execution was stuck with: its end and its plan have them, the question does not."""
    said = Counter(re.findall(r"[^\W\d_]+", tail.casefold()))
    known = {*re.findall(r"[^\W\d_]+", question.casefold())}
    new = {w for w in re.findall(r"[^\W\d_]+", plan.casefold()) if len(w) >= FEWEST_LETTERS} - known
    return set(sorted((w for w in new if said[w]), key=lambda w: (-said[w], w))[:MOST_WORDS])


def negated_formulas(text: str) -> list[str]:
    r"""Return the formulas in sentences that take something back.

    >>> negated_formulas("So x = 3. But x = 3 is wrong, as $y^2$ shows. Thus x = 4.")
    ['x = 3', '$y^2$']
    """
    sentences = re.split(r"(?<=[.!?])\s+|\n", text)
    formulas = [formula for s in sentences if NEGATED.search(s) for formula in FORMULA.findall(s)]
    return list(dict.fromkeys(formulas))


def next_plan(
    *, stuck: bool, current: str, refined: str, tried: Sequence[str], unused: dict[int, str], words: set[str]
) -> int | str:
    """Return the index of an unused plan, REFINED, or NEW (step 4 above).

    An unused plan that is like one that was tried does not count. A refinement that is empty or changed nothing is not
    used when stuck, either; where no unused plan is left then, a new one is drawn [inferred].
    """
    fresh = [i for i, text in unused.items() if all(overlap(text, t) <= ALIKE for t in tried)]
    changed = bool(refined) and overlap(refined, current) <= SAME
    if not stuck:
        return REFINED if changed else fresh[0] if fresh else NEW
    clean = [i for i in fresh if not words & {*re.findall(r"[^\W\d_]+", unused[i].casefold())}]
    return clean[0] if clean else REFINED if changed else fresh[0] if fresh else NEW


# ---- the loop


class State(NamedTuple):
    """Where the loop is with one problem."""

    plan: Plan
    index: int  # of the plan in the pool; -1: none of it
    tried: tuple[str, ...]
    unused: dict[int, str]
    calls: tuple[Call, ...]
    last: Candidate | None  # its last execution
    stuck: bool


States = dict[int, State]  # by problem


def react(study: Study, pool: dict[int, list[Plan]], picks: dict, k: int, settings: React) -> dict[int, Candidate]:
    """Return {problem: its last execution, with all calls}; `picks` are those of `choosing.best_plans`."""
    state, live, name = {}, list(pool), f"react-{settings.accept}-{k}"
    for p, plans_p in pool.items():
        index, judged = picks[p]
        unused = {i: plan.text for i, plan in enumerate(plans_p[:k]) if i != index}
        calls = (*(plan.call for plan in plans_p[:k]), *judged)
        state[p] = State(plans_p[index], index, (plans_p[index].text,), unused, calls, None, False)
    for number in range(settings.rounds + 1):
        run_plans(study, state, live, f"{name}-execute-{number}", chunk=settings.chunk)
        arrived = {p for p in live if has_arrived(study.bench.problems[p], state[p].last, rule=settings.accept)}
        lost = [p for p in live if p not in arrived and (state[p].stuck or not last_boxed(state[p].last.execution))]
        if study.planning.words:
            arrived |= rescue(study, state, lost, f"{name}-rescue-{number}", settings)
        live = [p for p in live if p not in arrived]
        if number == settings.rounds or not live:
            break
        refined = refine(study, state, live, f"{name}-refine-{number}", settings)
        missing = choose_next(study, state, refined, pool, tail=settings.tail)
        explore(study, state, missing, f"{name}-new-{number}", temperature=settings.explore_temperature)
    return {p: s.last._replace(calls=s.calls) for p, s in state.items()}


def has_arrived(problem: Problem, candidate: Candidate, *, rule: str) -> bool:
    """Return whether an execution ended by itself and is `accepted`."""
    return candidate.done and accepted(problem, candidate.execution, rule=rule)


def run_plans(study: Study, state: States, live: list[int], part: str, *, chunk: int) -> None:
    """Execute the current plans. A plan of the pool has the same execution for every method."""
    new = {(p, 0): state[p].plan for p in live if state[p].index < 0}
    shared = {(p, state[p].index): state[p].plan for p in live if state[p].index >= 0}
    for name, chosen in (("execute", shared), (part, new)):
        for (p, _), last in execute(study, name, chosen).items():
            drawn, looped = guarded(last.tokens, chunk)
            if looped:  # greedy: what chunks would have given is its beginning
                call = last.calls[0]._replace(sampled=drawn)
                last = executed(study, state[p].plan, last.tokens[:drawn], False, (call,))
            calls = (*state[p].calls, *last.calls)
            state[p] = state[p]._replace(last=last, calls=calls, stuck=not last.done)


def rescue(study: Study, state: States, lost: list[int], part: str, settings: React) -> set[int]:
    """Ask for the box alone; return the problems that got one and have arrived [inferred].

    The box is put at the end of their executions.
    """
    requests = []
    for p in lost:
        end = state[p].last.execution[-settings.tail :]
        prompt = study.turn(fill("rescue", problem=bare(study.bench.problems[p]), tail=end))
        requests.append(Request(p, (0,), prompt, settings.rescue_budget))
    saved = set()
    drawn = ask(study.bench, part, requests, stop=study.tokenizer.stop, temperature=0.0, top_p=1.0)
    for (p, _), (response, call) in drawn.items():
        s, answer = state[p], last_boxed(study.tokenizer.decode(response.tokens))
        last = s.last
        if answer:
            saved.add(p)
            text = f"{last.text.removesuffix(TAGS[3])}\n\\boxed{{{answer}}}{TAGS[3]}"
            last = last._replace(text=text, done=True)
        state[p] = s._replace(calls=(*s.calls, call), last=last)
    return saved


def refine(study: Study, state: States, live: list[int], part: str, settings: React) -> dict[int, Plan]:
    """Return a refined plan for each live problem, made from what its execution came to."""
    requests = []
    for p in live:
        prompt = study.begun(p)
        if study.planning.words:
            end = state[p].last.execution[-settings.tail :]
            told = fill(
                "refine",
                problem=bare(study.bench.problems[p]),
                plan=state[p].plan.text,
                tail=end,
                feedback=feedback_on("; ".join(negated_formulas(end))),
            )
            prompt = (*study.turn(told), study.tags[0])
        requests.append(Request(p, (0,), prompt, settings.refine_budget, 1))
    heat = {"temperature": settings.refine_temperature, "top_p": study.heat["top_p"]}
    return {p: plan for (p, _), plan in plans(study, part, requests, **heat).items()}


def feedback_on(formulas: str) -> str:
    """Return a refinement's feedback on formulas that were taken back; "" where there are none."""
    return WRONG.replace("{formulas}", formulas) if formulas else ""


def choose_next(
    study: Study, state: States, refined: dict[int, Plan], pool: dict[int, list[Plan]], *, tail: int
) -> dict[int, str]:
    """Give every problem with a refined plan its next one (`next_plan`).

    Return the problems that want a new plan, with the words that it is to avoid.
    """
    avoid = {}
    for p, plan in refined.items():
        s = state[p]._replace(calls=(*state[p].calls, plan.call))
        words = stuck_words(s.plan.text, s.last.execution[-tail:], study.question(p))
        step = next_plan(
            stuck=s.stuck, current=s.plan.text, refined=plan.text, tried=s.tried, unused=s.unused, words=words
        )
        if step == NEW:
            avoid[p] = ", ".join(sorted(words)) or "the way of the plan before"
        elif step != REFINED:
            plan = pool[p][step]
        index = step if isinstance(step, int) else -1
        unused = {i: text for i, text in s.unused.items() if i != step}
        state[p] = s._replace(plan=plan, index=index, tried=(*s.tried, plan.text), unused=unused)
    return avoid


def explore(study: Study, state: States, avoid: dict[int, str], part: str, *, temperature: float) -> None:
    """Give these problems a new plan each, one without the words that it is to avoid."""
    requests = []
    for p, words in avoid.items():
        prompt = study.begun(p)
        if study.planning.words:
            prompt = (*study.turn(fill("explore", problem=study.question(p), words=words)), study.tags[0])
        requests.append(Request(p, (0,), prompt, study.planning.plan_budget, 1))
    heat = {"temperature": temperature, "top_p": study.heat["top_p"]}
    for (p, _), plan in plans(study, part, requests, **heat).items():
        s = state[p]
        state[p] = s._replace(plan=plan, tried=(*s.tried[:-1], plan.text), calls=(*s.calls, plan.call))
