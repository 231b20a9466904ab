"""What SFT sees of causal data: masked prompts, plans alone for EF-SFT, a mixture, and nothing silently cut."""

import contextlib
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.phases import TAGS, read_tokens, tag_ids
from e3jax.tasks.stream import Wording
from e3jax.tasks.table import TASKS
from e3jax.tokenizer import WordTokenizer
from e3jax.train.examples import SetData, open_examples
from e3jax.train.packing import pack_rows
from tests.stages import sft_stage


class Spaced(WordTokenizer):
    """A tokenizer whose tags need no blanks around them, as on the hub."""

    def encode(self, text):
        for tag in TAGS:
            text = text.replace(tag, f" {tag} ")
        return super().encode(text)


TOKENIZER = Spaced(["q1", "q2", "q3", "add", "halve", "so", "\\boxed{5}", "heal", "long", *TAGS])
P, p, E, e = IDS = tag_ids(TOKENIZER)


@pytest.fixture
def run(tmp_path):
    """Return a run whose sets lie in two files: three rows of mathematics, two of another domain."""
    math = [
        {"question": "q1", "exploration": "add", "execution": "no", "re_execution": "so \\boxed{5}", "answer": "5"},
        {"question": "q2", "exploration": "halve", "execution": "so \\boxed{5}", "answer": "5"},
        {"question": "q3", "exploration": "long long long long", "execution": "so so", "answer": "5"},
    ]
    domain = [{"prompt": "q1", "exploration": "heal"}, {"prompt": "q2", "exploration": "heal heal"}]
    for name, rows in (("math", math), ("domain", domain)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = []
    log = SimpleNamespace(
        say=said.append, phase=lambda *_, **__: contextlib.nullcontext(SimpleNamespace(advance=lambda n: None))
    )
    draw = partial(TASKS["math"].open, seed=0, wording=Wording("bare", "{}<EXPLORATION>".format, "execution"))
    return SimpleNamespace(tokenizer=TOKENIZER, seed=0, log=log, draw_from=draw, said=said, at=tmp_path)


def examples(run, *, row_length=12, **data):
    whole = dict(part="both", longer="drop", regulariser="", regulariser_share=0.0)
    data = SetData(**{**whole, **data, "set": str(run.at / data["set"])})
    return open_examples(run, sft_stage(data=data, row_length=row_length))


def words(example):
    return TOKENIZER.decode(example[1])


def test_both_phases_after_a_masked_prompt(run):
    """The execution is the causal one; the forced tag is not prompt here, so that it is learned; EOS is trained."""
    of_step = examples(run, set="math.jsonl", per_step=2, row_length=10)
    step = of_step(0, 0, 0)
    assert run.said and "1 of 3 examples are longer than 10 tokens: drop" in run.said[0]
    assert {words(x) for x in step} == {
        "<EXPLORATION> add </EXPLORATION> <EXECUTION> so \\boxed{5} </EXECUTION>",
        "<EXPLORATION> halve </EXPLORATION> <EXECUTION> so \\boxed{5} </EXECUTION>",
    }
    assert all(x[1][-1] == TOKENIZER.eos and P not in x[0] for x in step)
    assert {words(x) for x in of_step(0, 1, 1)} == {words(x) for x in step}  # the next epoch
    tokens, _, segments, mask = pack_rows(step, rows=2, length=10, pad=0)
    prompts = np.isin(tokens, [TOKENIZER.index[q] for q in ("q1", "q2")])
    assert mask[prompts].sum() == 0 and mask.sum() == sum(len(x[1]) for x in step) == (segments > 0).sum() - 2
    with pytest.raises(UserError, match="2 examples do not fit rows=1 of 10 tokens: raise rows"):
        pack_rows(step, rows=1, length=10, pad=0)


def test_explorations_alone_with_a_share_of_whole_examples(run):
    """EF-SFT trains the plan and where it ends, never an execution or EOS; its regulariser is whole."""
    regulariser = dict(regulariser=str(run.at / "math.jsonl"), regulariser_share=0.25)
    step = examples(run, set="domain.jsonl", part="exploration", per_step=4, **regulariser)(0, 0, 0)
    plans, others = step[:3], step[3:]
    assert {words(x) for x in plans} == {
        "<EXPLORATION> heal </EXPLORATION> <EXECUTION>",
        "<EXPLORATION> heal heal </EXPLORATION> <EXECUTION>",
    }
    assert all(x[1][-1] == E and read_tokens(x[1], IDS, begun=False).fault == "no_execution_end" for x in plans)
    assert len(others) == 1 and others[0][1][-1] == TOKENIZER.eos
    with pytest.raises(UserError, match="has no execution"):
        examples(run, set="domain.jsonl", per_step=1)


def test_the_originals_cut_loses_the_end(run):
    step = examples(run, set="math.jsonl", per_step=3, longer="cut", row_length=8)(0, 0, 0)
    assert max(len(x[0]) + len(x[1]) for x in step) == 8
    assert sum(x[1][-1] == TOKENIZER.eos for x in step) == 0
    assert "3 of 3 examples are longer than 8 tokens: cut" in run.said[0]


def test_a_tokenizer_without_tags_is_refused(run):
    run.tokenizer = WordTokenizer(["q1"])
    with pytest.raises(UserError, match=r"lacks <EXPLORATION>, .*e3jax.tools.convert"):
        examples(run, set="math.jsonl", per_step=1)
