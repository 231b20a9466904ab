"""Reasoning Cache: think, summarise, think on from the summary alone, so that a context is never full (2602.03773).

    python -m e3jax.eval.run --config=configs/eval_math.py --workdir=runs/cache --config.only=AIME25 \
        --config.environment.file=examples/reasoning_cache.py --config.environment.turns=7 \
        --config.environment.turn_tokens=16384 --config.budgets='(16384,32768,65536,131072)'

z_i ~ π(· | x, summary_{i−1}): turns 1, 3, 5, … think about the question x, with at most turn_tokens tokens each. Turns
2, 4, … summarise. Every thinking turn but the first begins a new context, of the question and the newest summary alone.
The budget holds for all turns together, questions and summaries too; the answer that counts is the last one that any
turn gives. For evaluations only: what was read in one context cannot be trained on in another.

The paper's own words to the model are not known; these are ours. Give it a last turn that thinks: an odd `turns`.
"""

from e3jax.tasks.environment import Restart

SUMMARISE = (
    "Summarise your work on this problem in at most ten short lines, for somebody who goes on with it and sees nothing "
    "else: what was tried, what holds, what is still open, and the answer if there is one."
)


def reply(problem, transcript):
    """Ask for a summary of a turn that thought; begin a new context with a turn that was one."""
    if len(transcript) % 4 == 1:  # thought, SUMMARISE, summary, new context, thought, …
        return SUMMARISE
    question = problem.meta["problem"] if "problem" in problem.meta else problem.question
    return Restart(
        f"{question}\n\nThis is a summary of the work so far:\n{transcript[-1]}\n\n"
        "Go on with it. Check what it says, and put your final answer within \\boxed{}."
    )
