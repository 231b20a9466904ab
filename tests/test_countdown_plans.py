"""Traces of Countdown with plans are what the grader calls right, and honest where the plan is wrong."""

import numpy as np

from e3jax.phases import OPEN, split_text
from e3jax.rewards.countdown_plans import followed
from e3jax.tasks.countdown_plans import WORDS, Habits, plan_trace
from e3jax.tasks.grade import grade_one
from e3jax.tasks.table import TASKS
from e3jax.tokenizer import WordTokenizer


def test_traces():
    """Traces are well formed, in the tiny model's words, executed as far as a plan can be, and right at their rate."""
    tokenizer, rng = WordTokenizer(WORDS), np.random.default_rng(0)
    assert tokenizer.vocab_size == 210
    problems = TASKS["plans"].open((3, 4), seed=0, split="train")(0, 60)
    for rate, reasons in ((1.0, {"correct"}), (0.0, {"correct", "wrong_value"})):
        whys = []
        for problem in problems:
            for _ in range(2):
                text = plan_trace(problem, rng, Habits(solution_rate=rate))
                plan, execution, fault = split_text(text, begun=False)
                why = grade_one(problem, text, True).reason
                assert not fault and (followed(plan, execution) == 1.0) == (why == "correct")
                assert tokenizer.decode(tokenizer.encode(text)) == text
                whys.append(why)
        assert set(whys) == reasons
    assert whys.count("correct") < len(whys) / 3  # any plan is seldom right
    assert problems[0].id.startswith("countdown-plans-train-3") and not problems[0].question.endswith(OPEN)
