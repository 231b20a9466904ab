"""Counts, votes, tables and figures by hand."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from e3jax.eval import tables
from e3jax.eval.forcing import Trace
from e3jax.eval.scoring import count, record, score_traces, summary
from e3jax.report.files import extrapolation_file
from e3jax.rollout.responses import Response
from e3jax.tasks.grade import grade_all
from e3jax.tasks.problem import Problem

BOX = Problem("p0", "math", "What is 3+4?", "7", "easy", {"where": "response"})


class Later(list):
    def result(self):
        return list(self)


def grade(*args):
    return Later(grade_all(*args))


def decode(tokens):
    """Join tokens, each of which is a piece of text."""
    return "".join(tokens)


def responses():
    """Return four responses: right after thinking; right only if it goes on past 3; wrong; never ending."""
    return [
        Response(("a", r"</think>\boxed{7}", "!", "."), True),
        Response((r"\boxed{8}", "wait", "so", r"\boxed{7.0}</think>", "."), True),
        Response((r"\boxed{8}", "</think>", "."), True),
        Response((r"\boxed{7}", "b", "c", "d", "e", "f"), False),
    ]


def counted(budgets=(2, 4, 6)):
    return count([BOX], [responses()], decode=decode, grade=grade, budgets=budgets, on_graded=lambda n: None)


def test_both_columns_by_hand():
    """finished: ended by itself within B. cut: the last box within B counts, inside the thinking or not (App. B)."""
    line = record(counted()[0], (2, 4, 6))
    assert line["correct"] == {"2": 0, "4": 1, "6": 2}
    assert line["correct_cut"] == {"2": 2, "4": 3, "6": 3}  # the one that never ends has a right box from the start
    assert line["answers"] == {"7": 2, "8": 1, "": 1} and line["right_answers"] == ["7"]  # 7.0 votes with 7
    assert line["reasons"] == {"correct": 2, "wrong_value": 1, "truncated": 1}
    assert (line["length"], line["truncated"]) == (4.5, 0.25)


def test_summary_by_hand():
    """pass@2 of 2 right in 4: 5/6. maj@4: 2 of 3 votes. maj@2: right pairs 1, right with no vote 2, ties 2 of 6."""
    line = summary(counted(), budgets=(2, 4, 6), pass_ks=(1, 2, 4))
    means = {
        name: [x[0] for x in line[name].values()] for name in ("accuracy", "accuracy_cut", "pass_at_k", "maj_at_k")
    }
    np.testing.assert_allclose(means["accuracy"], [0, 1 / 4, 2 / 4])
    np.testing.assert_allclose(means["accuracy_cut"], [2 / 4, 3 / 4, 3 / 4])
    np.testing.assert_allclose(means["pass_at_k"], [1 / 2, 5 / 6, 1])
    bootstrapped = [x[0] for x in line["pass_at_k_bootstrap"].values()]  # 2 of 4 right, with replacement
    np.testing.assert_allclose(bootstrapped, [1 / 2, 3 / 4, 15 / 16])
    np.testing.assert_allclose(means["maj_at_k"], [1 / 2, (1 + 2 + 2 / 2) / 6, 1])
    for low_high in line["accuracy"].values():
        assert low_high[1] <= low_high[0] <= low_high[2]
    assert line["explore"]["verifications"] == 0 and line["explore"]["reason/truncated"] == 0.25


def test_a_budget_beyond_the_generation_is_refused():
    with pytest.raises(ValueError, match="cut at 6"):
        summary(counted((2, 8)), budgets=(2, 8), pass_ks=(1,))


def test_forced_tokens_are_not_sampled_tokens():
    whole = responses()[0].tokens
    traces = {(0, 0): Trace(("x", "Wait", *whole), 1, 2, True, True), (0, 1): Trace(whole, 0, 0, False, True)}
    means, lines = score_traces([BOX], traces, decode=decode, grade=grade)
    assert [(x["length"], x["forced"], x["sampled"], x["dropped"], x["reason"]) for x in lines] == [
        (6, 1, 5, 2, "correct"),
        (4, 0, 4, 0, "truncated"),
    ]
    assert means["accuracy"][0] == 0.5 and (means["length"], means["forced"], means["touched"]) == (5, 0.5, 0.5)


def eval_lines():
    wait = {"accuracy": [0.4, 0.3, 0.5], "length": 30.0, "forced": 2.5, "sampled": 27.5, "dropped": 3.0, "touched": 1.0}
    out = []
    for model, add in (("Qwen3-1.7B", 0.0), ("e3<&|>", 0.1)):
        line = summary(counted(), budgets=(2, 4, 6), pass_ks=(1, 2)) | {"stage": model, "set": "AIME25", "forcing": {}}
        line["pass_at_k"]["1"][0] += add
        out += [line, {**line, "set": "HMMT25", "forcing": {"wait-2": wait, "wait-10": {**wait, "length": 60.0}}}]
    return out


def test_tables_have_the_papers_form():
    one, three = tables.table_1(eval_lines()), tables.table_3(eval_lines())
    assert one[0] == ["model", "AIME25 pass@1", "AIME25 pass@2", "HMMT25 pass@1", "HMMT25 pass@2"]
    assert one[2] == ["e3<&|>", "60.0", "83.3", "60.0", "83.3"]
    assert three[0][:4] == ["model", "set", "2 finished", "2 cut"] and len(three) == 5
    assert three[1] == ["Qwen3-1.7B", "AIME25", "0.0", "50.0", "25.0", "75.0", "50.0", "75.0"]
    assert r"| e3<&\|> | 60.0 |" in tables.markdown(one)
    assert tables.comma_separated(three).splitlines()[1] == "Qwen3-1.7B,AIME25,0.0,50.0,25.0,75.0,50.0,75.0"
    drawn = tables.table_1(eval_lines(), tables.PASS_AT_K["bootstrap"])
    assert drawn[0][2] == "AIME25 bootstrapped pass@2" and drawn[1][2] == "75.0"
    old = [{k: v for k, v in line.items() if k != "pass_at_k_bootstrap"} for line in eval_lines()]
    assert tables.table_1(old, "pass_at_k_bootstrap") == [["model"]]
    fewer = eval_lines()
    del fewer[3]["pass_at_k"]["2"], fewer[2]  # a set with fewer samples; a model without one of the sets
    assert tables.table_1(fewer)[2] == ["e3<&|>", "", "", "60.0", ""]
    assert [row[2] for row in tables.table_forced(eval_lines())[1:]] == ["wait-2", "wait-10"] * 2


def test_the_figure_is_a_file_of_its_own():
    """Colours are in place, every model is named, text is escaped, and "wait" is a line over the lengths it gave."""
    order = ["Qwen3-1.7B", "e3<&|>"]
    svg = extrapolation_file(eval_lines()[1::2], order=order, title="HMMT25", train_budget=4)
    root = ElementTree.fromstring(svg)
    words = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    for word in ("HMMT25", "e3<&|>", 'e3<&|> + "wait"', "trained with", "beyond", "test budget (tokens)"):
        assert word in words, (word, words)
    assert "var(" not in svg and "currentColor" not in svg
    assert '+ "wait"' not in extrapolation_file(eval_lines()[::2], order=order, title="AIME25", train_budget=0)
