r"""What E2C's models are told beside the question: to summarise, follow, judge, refine, avoid, and end with a box.

All words here are ours. The prompts with which E2C's data was made are not known; those of test-time scaling ask for
what its code's `tts/prompts.py` asks for, in other words.

    fill("judge", problem="What is 1+1?", plans="Plan 1:\n1. Add.")
"""

import re

STEPS = 12  # that a summary may have at most, as it is told
PLAN_PROMPTS = {
    # E2C Algorithm 2, step 2: of a full solution, what comes first: a plan that does not know the result
    "summarise": "Here are a problem and a full solution of it.\n\nProblem:\n{problem}\n\nSolution:\n{solution}\n\n"
    "Write down the plan behind this solution, for somebody who has not seen it. Use a numbered list of at most "
    f"{STEPS} short steps, one line each, in the order in which they are taken. Say in each step what to do and how, "
    "but compute nothing: no intermediate results, and never the final answer. Write the list and nothing else.",
    # Algorithm 2, step 3, and the execution of test-time scaling ("Guideline (follow exactly):", rules in our words)
    "execute": "{problem}\n\nGuideline (follow exactly):\n{plan}\n\nRules:\n"
    "- Take every step of the guideline, in its order, and begin each with its number and title.\n"
    "- Take no shortcut, leave no step out and add no other method.\n"
    "- Write all computations out, and end with the final answer within \\boxed{}.",
    # selection: one of K plans, given back in full
    "judge": "Problem:\n{problem}\n\nHere are several plans for solving it.\n\n{plans}\n\n"
    "Which of them is most likely to lead to the right answer? Compare whether their steps are sound, complete and "
    "easy to carry out. Then write down the full text of the best plan, word for word, and nothing else.",
    # ReAct, step 3: a refined plan
    "refine": "Problem:\n{problem}\n\nThis plan was tried:\n{plan}\n\nThe attempt to carry it out ended like this:\n"
    "{tail}\n\n{feedback}It did not arrive at a final answer. Write a better plan as a numbered list: keep what "
    "worked, and change the steps that led astray. Write the list and nothing else.",
    # ReAct, step 2: a box and nothing else
    "rescue": "Problem:\n{problem}\n\nA solution that was not finished ends like this:\n{tail}\n\n"
    "State the final answer that it leads to, as \\boxed{} with the answer inside, and nothing else.",
    # ReAct, step 4: a new exploration, when all plans are used up
    "explore": "{problem}\n\nThink of another way to solve this. Do not use: {words}.",
}
WRONG = "These statements turned out to be wrong: {formulas}\n\n"  # the feedback of "refine"


def fill(name: str, **values: str) -> str:
    r"""Return PLAN_PROMPTS[name] with its fields filled in, in one pass (values may hold braces). KeyError for a gap.

    >>> fill("explore", problem="Find {x}.", words="induction")
    'Find {x}.\n\nThink of another way to solve this. Do not use: induction.'
    """
    return re.sub(r"\{(\w+)\}", lambda field: values[field[1]], PLAN_PROMPTS[name])


def numbered(plans: list[str]) -> str:
    r"""Return the plans as the judge reads them, each under its number.

    >>> numbered(["1. Add.", "1. Halve."])
    'Plan 1:\n1. Add.\n\nPlan 2:\n1. Halve.'
    """
    return "\n\n".join(f"Plan {i}:\n{plan}" for i, plan in enumerate(plans, 1))
