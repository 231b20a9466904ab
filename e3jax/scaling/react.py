r"""E2C's ReAct loop: execute a plan, and when it does not arrive, refine it or take another (ALGORITHMS B.6, 1 to 4).

    1 judge   of K plans one is executed, greedily, in chunks: a loop ends it
    2 accept  a final \boxed{} with enough before it and not too much behind; else, where it got stuck, a rescue
              asks for the box alone
    3 refine  the plan, from the end of the execution and the formulas that the model itself took back; <= 3 rounds
    4 next    stuck: an unused plan without the words it was stuck with, the refined one, any unused one, or a new one
              that avoids those words; not stuck: the refined one, unless it is the old one again: an unused one

No correctness signal is used. What is spent on plans, judge, refinement, rescue and executions counts.

    runs = react(study, pool, picks, k=8, accept="box", rounds=3, chunk=256, …)      # {problem: Run}

All problems go through a round together; rules are pure functions. Models without `words` are not told anything: a
refined plan is then one drawn at the refinement's temperature, a new one at exploration's, and nothing is rescued
(ours). Where B.6 leaves a rule open the choice is ours and says so.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e3jax.phases import TAGS
from e3jax.rewards.countdown_plans import read_execution
from e3jax.rewards.extract import last_boxed
from e3jax.scaling.calls import Call, Request, ask
from e3jax.scaling.planning import Plan, Run, Study, bare, execute, plans, run_of
from e3jax.tasks.plan_prompts import WRONG, fill
from e3jax.tasks.problem import Problem

BEFORE, BEHIND = 300, 500  # characters around a final box (B.6)
SAME, ALIKE = 0.85, 0.75  # overlap of words: a refinement that changed nothing; a plan that was tried already (B.6)
FEWEST_LETTERS, MOST_WORDS = 5, 8  # of words that a plan was stuck with (ours)
ACCEPT = ("box", "form", "target")
REFINED, NEW = "refined", "new"
NEGATED = re.compile(
    r"\b(wrong|incorrect|mistaken?|false|contradict\w*|not (?:true|right|correct|valid|hold)|"
    r"does(?:n't| not) hold|can(?:not|'t) be)\b",
    re.IGNORECASE,
)
# an equation's left side has 80 characters at most, and \( \) nothing of its kind inside: the work stays linear
FORMULA = re.compile(r"\$[^$\n]+\$|\\\((?:(?!\\\().)+?\\\)|[^\s=.,;]{1,80} ?= ?[^\s=,;]*[^\s=,;.]")


# ---- rules


def loops(tokens: Sequence[int], chunk: int) -> bool:
    """Whether the last `chunk` tokens repeat a piece of at most a quarter of them (ours: B.6 has "loop guard" alone).

    >>> loops([9, 1, 2, 1, 2, 1, 2, 1, 2], 8), loops([1, 2, 3, 4, 1, 2, 3, 4], 8)
    (True, False)
    """
    last = np.asarray(tokens[-chunk:])
    return len(last) == chunk and any((last[n:] == last[:-n]).all() for n in range(1, chunk // 4 + 1))


def guarded(run: Run, chunk: int) -> tuple[int, bool]:
    """How many of its tokens a generation in chunks draws before the guard ends it, and whether it does."""
    for end in range(chunk, len(run.tokens), chunk):
        if loops(run.tokens[:end], chunk):
            return end, True
    return len(run.tokens), False


def accepted(problem: Problem, execution: str, *, rule: str) -> bool:
    r"""Whether an execution arrives, as far as its form tells.

    "box": a \boxed{} with BEFORE characters or more before it, and BEHIND or fewer after it. Countdown with plans has
    no box: "form" wants well-formed arithmetic; "target" wants it to end in the target too, which the question tells.
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
    """Words in both, of all words in either.

    >>> overlap("Add both numbers", "add them")
    0.25
    """
    one, other = ({*text.casefold().split()} for text in (a, b))
    return len(one & other) / max(len(one | other), 1)


def stuck_words(plan: str, tail: str, question: str) -> set[str]:
    """Words of the plan that the end of its execution keeps saying, but not the question: what it was stuck with."""
    said = Counter(re.findall(r"[^\W\d_]+", tail.casefold()))
    known = {*re.findall(r"[^\W\d_]+", question.casefold())}
    own = {w for w in re.findall(r"[^\W\d_]+", plan.casefold()) if len(w) >= FEWEST_LETTERS} - known
    return set(sorted((w for w in own if said[w]), key=lambda w: (-said[w], w))[:MOST_WORDS])


def negated_formulas(text: str) -> list[str]:
    r"""Formulas in sentences that take something back.

    >>> negated_formulas("So x = 3. But x = 3 is wrong, as $y^2$ shows. Thus x = 4.")
    ['x = 3', '$y^2$']
    """
    sentences = re.split(r"(?<=[.!?])\s+|\n", text)
    found = [formula for s in sentences if NEGATED.search(s) for formula in FORMULA.findall(s)]
    return list(dict.fromkeys(found))


def next_plan(
    *, stuck: bool, current: str, refined: str, tried: Sequence[str], unused: dict[int, str], words: set[str]
) -> int | str:
    """Index of an unused plan, REFINED, or NEW (B.6, 4: A1 to A4, then the refinement's own rules).

    An unused plan like one that was tried does not count. A refinement that is empty or changed nothing is not used
    when stuck either, nor is a new plan left out when one is refined to itself and none is left [inferred].
    """
    fresh = [i for i, text in unused.items() if all(overlap(text, t) <= ALIKE for t in tried)]
    changed = bool(refined) and overlap(refined, current) <= SAME
    if not stuck:
        return REFINED if changed else fresh[0] if fresh else NEW
    clean = [i for i in fresh if not words & {*re.findall(r"[^\W\d_]+", unused[i].casefold())}]
    return clean[0] if clean else REFINED if changed else fresh[0] if fresh else NEW


# ---- the loop


class Loop(NamedTuple):
    """Where one problem is."""

    plan: Plan
    index: int  # of the plan in the pool; -1: none of it
    tried: tuple[str, ...]
    unused: dict[int, str]
    calls: tuple[Call, ...]
    run: Run | None  # the last execution
    stuck: bool


def react(
    study: Study,
    pool: dict[int, list[Plan]],
    picks: dict,
    *,
    k: int,
    accept: str,
    rounds: int,
    chunk: int,
    tail: int,
    refine_budget: int,
    refine_temperature: float,
    explore_temperature: float,
    rescue_budget: int,
) -> dict[int, Run]:
    """{problem: its last run, with everything that was spent}; `picks` as choosing.judge gives them."""
    state, live, name = {}, list(pool), f"react-{accept}-{k}"
    for p, plans_p in pool.items():
        index, judged = picks[p]
        unused = {i: plan.text for i, plan in enumerate(plans_p[:k]) if i != index}
        calls = (*(plan.call for plan in plans_p[:k]), *judged)
        state[p] = Loop(plans_p[index], index, (plans_p[index].text,), unused, calls, None, False)
    for number in range(rounds + 1):
        run_plans(study, state, live, f"{name}-execute-{number}", chunk=chunk)
        arrived = {
            p
            for p in live
            if state[p].run.done and accepted(study.bench.problems[p], state[p].run.execution, rule=accept)
        }
        lost = [p for p in live if p not in arrived and (state[p].stuck or not last_boxed(state[p].run.execution))]
        if study.words:
            arrived |= rescue(study, state, lost, f"{name}-rescue-{number}", tail=tail, budget=rescue_budget)
        live = [p for p in live if p not in arrived]
        if number == rounds or not live:
            break
        how = dict(part=f"{name}-refine-{number}", budget=refine_budget, temperature=refine_temperature, tail=tail)
        refined = refine(study, state, live, **how)
        choose_next(
            study, state, live, refined, f"{name}-new-{number}", pool=pool, tail=tail, temperature=explore_temperature
        )
    return {p: s.run._replace(calls=s.calls) for p, s in state.items()}


def run_plans(study: Study, state: dict[int, Loop], live: list[int], part: str, *, chunk: int) -> None:
    """Execute the current plans; one of the pool is the same execution for every method."""
    own = {(p, 0): state[p].plan for p in live if state[p].index < 0}
    shared = {(p, state[p].index): state[p].plan for p in live if state[p].index >= 0}
    for part_, chosen in (("execute", shared), (part, own)):
        for (p, _), run in execute(study, part_, chosen).items():
            drawn, looped = guarded(run, chunk)
            if looped:  # greedy: what chunks would have given is its beginning
                call = run.calls[0]._replace(sampled=drawn)
                run = run_of(study, state[p].plan, run.tokens[:drawn], False, (call,))
            calls = (*state[p].calls, *run.calls)
            state[p] = state[p]._replace(run=run, calls=calls, stuck=not run.done)


def rescue(study: Study, state: dict[int, Loop], lost: list[int], part: str, *, tail: int, budget: int) -> set[int]:
    """Ask for the box alone; those that give one have arrived [inferred], with it at the end of their execution."""
    asked = [
        Request(
            p,
            (0,),
            study.said(fill("rescue", problem=bare(study.bench.problems[p]), tail=state[p].run.execution[-tail:])),
            0,
            budget,
        )
        for p in lost
    ]
    saved = set()
    for (p, _), (response, call) in ask(
        study.bench, part, asked, stop=study.tokenizer.stop, temperature=0.0, top_p=1.0
    ).items():
        s, answer = state[p], last_boxed(study.tokenizer.decode(response.tokens))
        run = s.run
        if answer:
            saved.add(p)
            text = f"{run.text.removesuffix(TAGS[3])}\n\\boxed{{{answer}}}{TAGS[3]}"
            run = run._replace(text=text, done=True)
        state[p] = s._replace(calls=(*s.calls, call), run=run)
    return saved


def refine(
    study: Study, state: dict[int, Loop], live: list[int], *, part: str, budget: int, temperature: float, tail: int
) -> dict[int, Plan]:
    """A better plan each, from what its execution came to."""
    asked = []
    for p in live:
        prompt = study.begun(p)
        if study.words:
            end = state[p].run.execution[-tail:]
            wrong = "; ".join(negated_formulas(end))
            told = fill(
                "refine",
                problem=bare(study.bench.problems[p]),
                plan=state[p].plan.text,
                tail=end,
                feedback=fill_wrong(wrong),
            )
            prompt = (*study.said(told), study.tags[0])
        asked.append(Request(p, (0,), prompt, 1, budget))
    drawn = plans(study, part, asked, temperature=temperature, top_p=study.top_p)
    return {p: plan for (p, _), plan in drawn.items()}


def fill_wrong(formulas: str) -> str:
    """The feedback of a refinement; nothing where nothing was taken back."""
    return WRONG.replace("{formulas}", formulas) if formulas else ""


def choose_next(
    study: Study,
    state: dict[int, Loop],
    live: list[int],
    refined: dict[int, Plan],
    part: str,
    *,
    pool,
    tail: int,
    temperature: float,
) -> None:
    """Give every live problem its next plan (`next_plan`), drawing new ones where none is left."""
    asked, avoid = [], {}
    for p in live:
        s, plan = state[p], refined[p]
        s = s._replace(calls=(*s.calls, plan.call))
        words = stuck_words(s.plan.text, s.run.execution[-tail:], study.asked[p])
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
    for p, words in avoid.items():
        prompt = study.begun(p)
        if study.words:
            prompt = (*study.said(fill("explore", problem=study.asked[p], words=words)), study.tags[0])
        asked.append(Request(p, (0,), prompt, 1, study.plan_budget))
    for (p, _), plan in plans(study, part, asked, temperature=temperature, top_p=study.top_p).items():
        s = state[p]
        state[p] = s._replace(plan=plan, tried=(*s.tried[:-1], plan.text), calls=(*s.calls, plan.call))
