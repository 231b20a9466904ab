"""What a response without an end is worth, and what is said of a step in which no answer could be read."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from e3jax.errors import UserError
from e3jax.rewards.extract import Grade
from e3jax.tasks.countdown import paper_problem
from e3jax.tasks.grade import grade_one, nothing_read
from e3jax.tasks.problem import Problem
from e3jax.train.setup import check_thinking
from tests.stages import grpo_stage, sft_stage

BOXED = Problem("q", "math", "1+1?", "2", "", {"where": "response"})


def test_a_cut_response_is_graded_as_it_stands_where_the_config_says_so():
    """e3's reward does not mention EOS: what is there counts. It scored 0 here, and no config could change that."""
    text = "1+1 is 2 </think> \\boxed{2} because I"
    graded = replace(BOXED, meta=BOXED.meta | {"unfinished": "graded"})
    wrong = replace(BOXED, meta=BOXED.meta | {"unfinished": "wrong"})
    assert grade_one(graded, text, False) == grade_one(BOXED, text, True) == Grade(1.0, "correct")
    assert grade_one(wrong, text, False) == grade_one(BOXED, text, False) == Grade(0.0, "truncated")
    countdown = paper_problem(0, 0, numbers=3)
    cut = replace(countdown, meta=countdown.meta | {"unfinished": "graded"})
    assert grade_one(cut, "<think> no </think> <answer> 1 </answer> and", False).reason == "wrong_numbers"


def test_a_step_without_a_readable_answer_is_told_with_what_to_set():
    """Such a run silently earned 0 for ever."""
    fields = dict(where_field="config.task.where", prompt_field="config.task.prompt")
    thoughts = nothing_read(["no_thinking", "no_answer"], [BOXED] * 2, **fields)
    assert "config.task.where='response'" in thoughts and "'anywhere'" in thoughts and "1 lack" in thoughts
    boxes = nothing_read(["no_answer"] * 2, [BOXED] * 2, **fields)
    assert "config.task.prompt" in boxes and "\\boxed{}" in boxes
    assert "<answer>" in nothing_read(["no_answer"], [paper_problem(0, 0, numbers=3)], **fields)
    assert nothing_read(["no_answer", "wrong_value"], [BOXED] * 2, **fields) is None
    assert nothing_read([], [], **fields) is None


def config(*kinds, where="response", prompt="e3", chat="template", init_from="", reward=""):
    """Return what `check_thinking` reads of a run's settings."""
    stages = tuple({"grpo": grpo_stage, "sft": sft_stage}[kind]() for kind in kinds)
    return SimpleNamespace(
        task=SimpleNamespace(form="math", where=where, prompt=prompt, chat=chat, reward=reward),
        eval=SimpleNamespace(sets={}),
        stages=stages,
        init=SimpleNamespace(init_from=init_from),
    )


@pytest.mark.parametrize("where", ["response", "after_thinking"])
def test_a_reward_that_waits_for_a_thought_nobody_taught_is_refused(where):
    """A chat model without thinking earned 0 for ever: its template and vocabulary have no </think>."""
    plain, thinker, raw = (
        SimpleNamespace(has_chat=chat, thinks=thinks) for chat, thinks in ((True, False), (True, True), (False, False))
    )
    with pytest.raises(UserError, match=rf"config\.task\.where='{where}': counts only .*set 'anywhere'"):
        check_thinking(config("grpo", where=where), plain)
    check_thinking(config("grpo", where="anywhere"), plain)
    check_thinking(config("grpo", where=where), thinker)
    check_thinking(config("grpo", where=where), raw)
    check_thinking(config("sft", "grpo", where=where), plain)
    check_thinking(config("grpo", where=where, prompt="oxa"), plain)
    check_thinking(config("grpo", where=where, init_from="runs/a/checkpoints/sft/10"), plain)
