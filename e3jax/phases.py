"""E2C's two phases: a plan, then its execution, each between two tags that are tokens of their own.

    <EXPLORATION>plan</EXPLORATION><EXECUTION>derivation … \\boxed{}</EXECUTION>

Text and tokens are read by one rule: the four tags come in this order, each once. The first tag that is not the next
one is the `fault`, and what follows it is not read:

    nested     a phase opens inside an open one (the same tag again, too)
    repeated   a tag whose turn is over, outside an open phase
    reversed   a tag before its turn, whose own comes later
    no_plan, no_plan_end, no_execution, no_execution_end      the next tag never comes

Whatever stands outside the tags belongs to no phase and is no fault. Only the response is read, never its prompt: a
question may speak of the tags. A prompt that ends with "<EXPLORATION>" has begun the plan (`begun`): generation is
forced to start with it (E2C's solution_prefix), and being prompt it is never trained as if sampled.
Ids go by name: the released model has </EXPLORATION> at 151672, as its added tokens decide.

    read_text("<EXPLORATION>add<EXECUTION>1+1", begun=False).fault      # "nested"
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from e3jax.errors import UserError

TAGS = ("<EXPLORATION>", "</EXPLORATION>", "<EXECUTION>", "</EXECUTION>")
OPEN = TAGS[0]
MISSING = ("no_plan", "no_plan_end", "no_execution", "no_execution_end")
FAULTS = ("nested", "repeated", "reversed", *MISSING)
NO_TAGS = f"the tokenizer lacks {', '.join(TAGS)}: add them with python -m e3jax.tools.convert --add_tokens=…"
TAG = re.compile("|".join(map(re.escape, TAGS)))


class Phases(NamedTuple):
    """Where the phases are: [first, behind the last) without their tags, in characters or tokens of the response."""

    plan: tuple[int, int] | None  # one that never ends reaches to the end; None: not read
    execution: tuple[int, int] | None
    tags: int  # read in order, a begun one included: 2 = the plan is complete, 4 = all
    fault: str  # "" or one of FAULTS


def write_text(plan: str, execution: str) -> str:
    """Return a response of two phases.

    >>> write_text("add", "1+1")
    '<EXPLORATION>add</EXPLORATION><EXECUTION>1+1</EXECUTION>'
    """
    return f"{TAGS[0]}{plan}{TAGS[1]}{TAGS[2]}{execution}{TAGS[3]}"


def begins_plan(prompt: str) -> bool:
    """Return whether a prompt ends with the forced tag."""
    return prompt.endswith(OPEN)


def read_text(text: str, *, begun: bool) -> Phases:
    """Return the phases of a response's text; `begun`: its prompt has the opening tag."""
    marks = [(TAGS.index(m[0]), m.start(), m.end()) for m in TAG.finditer(text)]
    return _read(marks, len(text), begun=begun)


def split_text(text: str, *, begun: bool) -> tuple[str, str, str]:
    """Return plan and execution (stripped, "" where there is none), and the fault.

    >>> split_text("add </EXPLORATION><EXECUTION> 1+1 </EXECUTION>", begun=True)
    ('add', '1+1', '')
    """
    phases = read_text(text, begun=begun)
    plan, execution = (text[slice(*span)].strip() if span else "" for span in (phases.plan, phases.execution))
    return plan, execution, phases.fault


def read_tokens(tokens: Sequence[int], tags: Sequence[int], *, begun: bool) -> Phases:
    """Return the phases of a response's tokens; `tags` are the ids of TAGS (`tag_ids`)."""
    tokens, numbers = np.asarray(tokens), {tag: number for number, tag in enumerate(tags)}
    at = np.flatnonzero(np.isin(tokens, tags))
    marks = [(numbers[token], i, i + 1) for token, i in zip(tokens[at].tolist(), at.tolist())]
    return _read(marks, len(tokens), begun=begun)


def tag_ids(tokenizer) -> tuple[int, ...]:
    """Return the ids of the four tags, () for a tokenizer without them; UserError where its text would lose them."""
    try:
        ids = tuple(tokenizer.id(tag) for tag in TAGS)
    except UserError:
        return ()
    if tokenizer.decode(ids).replace(" ", "") != "".join(TAGS):
        raise UserError(
            f"the tokenizer leaves {', '.join(TAGS)} out of decoded text, as special tokens: graders could not see the "
            "phases. Mark them special=false in tokenizer.json, or add them with python -m e3jax.tools.convert"
        )
    return ids


def phase_masks(tokens_bt, prompt_len_b, length_b, *, tags: Sequence[int]) -> tuple[np.ndarray, np.ndarray, list]:
    """Return plan and execution of every rollout as masks [B, T] without the tags, and the B `Phases`."""
    plan_bt, execution_bt, phases = np.zeros(tokens_bt.shape, bool), np.zeros(tokens_bt.shape, bool), []
    for b, (start, end) in enumerate(zip(prompt_len_b, length_b)):
        one = read_tokens(tokens_bt[b, start:end], tags, begun=tokens_bt[b, start - 1] == tags[0])
        for mask, span in ((plan_bt, one.plan), (execution_bt, one.execution)):
            if span:
                mask[b, start + span[0] : start + span[1]] = True
        phases.append(one)
    return plan_bt, execution_bt, phases


def _read(marks: Iterable[tuple[int, int, int]], end: int, *, begun: bool) -> Phases:
    """Return the phases between `marks`: (number in TAGS, where it begins, where it ends) of every tag."""
    marks, spans = list(marks), {}
    turn, inside = int(begun), 0  # the tag whose turn it is; where the open phase began
    for i, (tag, first, behind) in enumerate(marks):
        if tag != turn:
            return Phases(spans.get(1), spans.get(3), turn, _fault(tag, turn, {m[0] for m in marks[i:]}))
        spans[tag] = (inside, first)  # of a closing tag: its phase
        turn, inside = turn + 1, behind
    if turn < 4:
        spans[turn] = (inside, end)
    return Phases(spans.get(1), spans.get(3), turn, MISSING[turn] if turn < 4 else "")


def _fault(tag: int, turn: int, still: set[int]) -> str:
    """Return the fault of a tag out of turn; `still` are this tag and those that follow."""
    if tag in (0, 2) and turn in (1, 3):
        return "nested"
    if tag < turn:
        return "repeated"
    return "reversed" if turn in still else MISSING[turn]
