"""Reading plan and execution: every malformed case, text and tokens alike, a forced start that is never trained."""

import numpy as np
import pytest

from e3jax.errors import UserError
from e3jax.phases import FAULTS, TAGS, begins_plan, phase_masks, read_text, read_tokens, split_text, tag_ids, write_text
from e3jax.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer(["a", "b", "c", *TAGS])
IDS = tag_ids(TOKENIZER)
# written with P p E e for the four tags; fault, tags read in order, plan, execution
CASES = [
    ("P a p E b e", False, "", 4, "a", "b"),
    ("a p E b e", True, "", 4, "a", "b"),
    ("c P a p c E b e c", False, "", 4, "a", "b"),  # outside the tags: nobody's
    ("P p E e", False, "", 4, "", ""),
    ("", False, "no_plan", 0, None, None),
    ("a b", False, "no_plan", 0, None, None),
    ("E b e", False, "no_plan", 0, None, None),
    ("a p E b e", False, "no_plan", 0, None, None),  # nobody forced the start
    ("P a", False, "no_plan_end", 1, "a", None),
    ("a", True, "no_plan_end", 1, "a", None),
    ("", True, "no_plan_end", 1, "", None),
    ("P a e", False, "no_plan_end", 1, None, None),
    ("P a p b", False, "no_execution", 2, "a", None),
    ("P a p b e", False, "no_execution", 2, "a", None),
    ("P a p E b", False, "no_execution_end", 3, "a", "b"),
    ("P a E b e", False, "nested", 1, None, None),
    ("P a P b p E c e", False, "nested", 1, None, None),
    ("P a p E b e", True, "nested", 1, None, None),  # the forced tag said again
    ("P a p E b P c p e", False, "nested", 3, "a", None),
    ("P a p E b E c e", False, "nested", 3, "a", None),
    ("P a p P b p E c e", False, "repeated", 2, "a", None),
    ("P a p p E c e", False, "repeated", 2, "a", None),
    ("P a p E b p c e", False, "repeated", 3, "a", None),
    ("P a p E b e E c e", False, "repeated", 4, "a", "b"),
    ("E b e P a p", False, "reversed", 0, None, None),
    ("p a P E b e", False, "reversed", 0, None, None),
    ("P a p e b E", False, "reversed", 2, "a", None),
    ("P a e b p E c", False, "reversed", 1, None, None),
]


def spelled(code):
    return " ".join(dict(zip("PpEe", TAGS)).get(word, word) for word in code.split())


@pytest.mark.parametrize(("code", "begun", "fault", "tags", "plan", "execution"), CASES)
def test_every_case(code, begun, fault, tags, plan, execution):
    """Text and tokens agree in every case."""
    text = spelled(code)
    tokens = TOKENIZER.encode(text)
    in_text, in_tokens = read_text(text, begun=begun), read_tokens(tokens, IDS, begun=begun)
    of_text = [span and text[slice(*span)].strip() for span in in_text[:2]]
    of_tokens = [span and TOKENIZER.decode(tokens[slice(*span)]) for span in in_tokens[:2]]
    assert of_text == of_tokens == [plan, execution]
    assert (in_text.fault, in_text.tags) == (in_tokens.fault, in_tokens.tags) == (fault, tags)
    assert split_text(text, begun=begun) == (plan or "", execution or "", fault)


def test_all_faults_are_in_the_cases():
    assert {case[2] for case in CASES} == {"", *FAULTS}


def test_written_is_read():
    assert split_text(write_text("1. add", "so 2"), begun=False) == ("1. add", "so 2", "")


def test_masks_and_tags_in_the_prompt():
    """A question that mentions the tags begins no plan; one that ends with the opening tag has begun it."""
    prompts = ["a <EXECUTION> </EXPLORATION> b", "a <EXPLORATION>", "<EXPLORATION> a"]
    assert [begins_plan(p) for p in prompts] == [False, True, False]
    responses = ["P a p E b e", "a b p E c", "b p"]
    rows = [TOKENIZER.encode(f"{prompt} {spelled(code)}") for prompt, code in zip(prompts, responses)]
    prompt_len, length = np.array([4, 2, 2]), np.array([len(r) for r in rows])
    tokens = np.array([r + [0] * (10 - len(r)) for r in rows])
    plan, execution, phases = phase_masks(tokens, prompt_len, length, tags=IDS)
    assert [np.flatnonzero(p).tolist() for p in plan] == [[5], [2, 3], []]
    assert [np.flatnonzero(e).tolist() for e in execution] == [[8], [6], []]
    assert [p.fault for p in phases] == ["", "no_execution_end", "no_plan"]
    assert not (plan & (np.arange(10) < prompt_len[:, None])).any()


def test_tokenizers_without_the_tags():
    assert tag_ids(WordTokenizer(["a"])) == ()

    class Hiding:  # a hub tokenizer whose tags are special: skip_special_tokens drops them
        id, decode = staticmethod(TAGS.index), staticmethod(lambda tokens: "")

    with pytest.raises(UserError, match="special tokens"):
        tag_ids(Hiding)
