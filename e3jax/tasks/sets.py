"""Sets of questions by name: what each is called on the hub, and how its rows become Problems.

    problems = load_set("deepscaler", prompt="e3", limit=100)
    problems = load_set("/data/aime24.json", prompt="qwen")          # also .jsonl, .csv, .parquet, a prepared set, gs://…
    problems = load_set("math-ai/aime25@test", prompt="e3")          # any hub id, with its split

Rows that are malformed are counted and listed on stderr; more than one in twenty, or none that is not, stop.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from e3jax.errors import UserError, need
from e3jax.printable import printable
from e3jax.readers import fault
from e3jax.tasks.math import ASKED, GOLD, Fields, read_math, read_plan
from e3jax.tasks.mcq import GPQA, read_mcq
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import Chat, default_prompt, prompt_text, qwen3_chat
from e3jax.tasks.rows import Row, hub_rows, is_place, place_rows, tfds_rows

MOST_BAD = 0.05  # of the rows: more means that the file is not what its reader takes it for (own choice)
FIELDS = {"task": str, "problem": str, "answer": str, "difficulty": str, "meta": dict}  # of a prepared set's rows
LONGEST = 500  # characters of a list of columns
LISTED = 20  # malformed rows that are named; the others are counted


class Needs(NamedTuple):
    """What a run's reward needs of a set; the defaults are those of the task's grader (tasks/own_reward.py)."""

    rows: bool = False  # whole, as meta["row"]
    answers: bool = True  # which the task's grader compares: a row must have one, and its prompt asks for it


ANSWERS_ALONE = Needs()


class Source(NamedTuple):
    """Where a set lies on the hub."""

    hub: str
    split: str
    config: str = ""  # the hub's name for a part of it


SETS = {
    "deepscaler": Source("agentica-org/DeepScaleR-Preview-Dataset", "train"),  # 40,315
    "e3-math-easy": Source("CMU-AIRe/e3-math-easy", "train"),  # stage 1 of e3
    "e3-math-medhard": Source("CMU-AIRe/e3-math-medhard", "train"),  # stage 2
    "hmmt-aime-2025": Source("CMU-AIRe/hmmt-aime-2025", "test"),  # 60
    "aime24": Source("HuggingFaceH4/aime_2024", "train"),  # 30
    "aime25": Source("yentinglin/aime_2025", "train"),  # 30
    "hmmt25": Source("MathArena/hmmt_feb_2025", "train"),  # 30
    "amc": Source("AI-MO/aimo-validation-amc", "train"),  # 83
    "math500": Source("HuggingFaceH4/MATH-500", "test"),  # 500
    "omni-math": Source("KbsdJames/Omni-MATH", "test"),  # 4,428
    "openmathreasoning": Source("nvidia/OpenMathReasoning", "cot"),  # 3,201,061 solutions; give a limit
    "mmlu": Source("cais/mmlu", "test", "all"),  # 14,042
    "mmlu-pro": Source("TIGER-Lab/MMLU-Pro", "test"),  # 12,032
    "gpqa-diamond": Source("Idavidrein/gpqa", "train", "gpqa_diamond"),  # 198, gated
}
TFDS = {"gsm8k": "test"}  # through TensorFlow data sets; its split


def chosen_sets(sets: Mapping[str, Any], only: str, *, field: str = "only") -> dict[str, Any]:
    """Return the sets that `only` names, with commas between them; all of them for "". Refuse a name that is no set.

    >>> chosen_sets({"AIME25": 1, "MATH500": 2, "3 numbers": 3}, "3 numbers,AIME25")
    {'AIME25': 1, '3 numbers': 3}
    """
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        need(name in sets, field, only, f"no set is called {name!r}: the sets are {', '.join(map(repr, sets))}")
    return {name: one for name, one in sets.items() if not names or name in names}


def need_set(field: str, name) -> None:
    """Refuse config.`field` unless it is the name of a set, a hub id or a path."""
    need(isinstance(name, str), field, name, "name a set (tasks/sets.py), a hub id or a path")
    base = name.partition("@")[0]
    need(
        base in SETS or base in TFDS or base.count("/") == 1 or is_place(base),
        field,
        name,
        f"use one of {', '.join([*SETS, *TFDS])}; or a hub id OWNER/NAME[@SPLIT]; or a path",
    )


def load_set(
    name: str,
    *,
    prompt: str,
    seed: int = 0,
    split: str = "",
    limit: int = 0,
    chat: Chat = qwen3_chat,
    where: str = "response",
    needs: Needs = ANSWERS_ALONE,
) -> list[Problem]:
    """Return the problems of a set in its own order: at most `limit` rows are read (0: all).

    `name`: one of SETS or TFDS, a hub id, or a path; "NAME@SPLIT" is the same as `split`. `prompt` names the words
    around a problem (tasks/prompts.py; "": as `default_prompt` says), `chat` puts them into a chat template, `seed`
    orders the choices of GPQA. `where` graders look for the answer (rewards/extract.py; the default is e3's).
    A Problem's meta: {"source", "index": row, "problem": bare, "where", …}. UserError: unknown name or split, a hub
    that cannot be reached, missing columns, no usable row.
    """
    source = short_name(name)
    return [
        to_problem(fields, source, index, prompt, chat, where, answers=needs.answers)
        for index, fields in load_fields(name, seed=seed, split=split, limit=limit, needs=needs)
    ]


def load_fields(
    name: str, *, seed: int, split: str, limit: int, needs: Needs = ANSWERS_ALONE
) -> list[tuple[int, Fields]]:
    """Return (row, what it says) of every row that is well formed; list the others on stderr."""
    source = short_name(name)
    return read_all(name, lambda row: read_row(row, source=source, seed=seed, needs=needs), split=split, limit=limit)


def read_all(name: str, read: Callable[[Row], Any], *, split: str = "", limit: int = 0) -> list[tuple[int, Any]]:
    """Return (number, read(row)) of every well-formed row, where `read` raises no ValueError; list the others."""
    good, bad, rows = [], [], 0
    for row in islice(read_rows(name, split=split, limit=limit), limit or None):
        rows += 1
        try:
            if row.wrong:
                raise ValueError(row.wrong)
            good.append((row.index, read(row)))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            bad.append((row.where, str(error)))
    tell_bad(name, rows, bad)
    return good


def tell_bad(name: str, rows: int, bad: list[tuple[str, str]]) -> None:
    """List the malformed rows, by what is wrong with them; UserError when too many are, or nothing is left."""
    by_fault: dict[str, list[str]] = {}
    for where, wrong in bad[:LISTED]:
        by_fault.setdefault(wrong, []).append(where)
    listed = "; ".join(f"{', '.join(places)}: {wrong}" for wrong, places in by_fault.items())
    listed += f" … and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    if not rows:
        raise UserError(f"{name} is empty: there is no row in it")
    if len(bad) == rows or (len(bad) > MOST_BAD * rows and len(bad) > 1):
        raise UserError(f"{name}: {len(bad)} of {rows} rows are malformed: mend or remove them ({listed})")
    if bad:
        text = f"{name}: left out {len(bad)} of {rows} rows, which are malformed: {listed}"
        print(printable(text, lines=False), file=sys.stderr, flush=True)


def read_rows(name: str, *, split: str, limit: int) -> Iterator[Row]:
    """Yield the rows of a named set, a path or a hub id."""
    base, _, named = name.partition("@")
    if named and split and named != split:
        raise UserError(f"{name} with split={split!r}: name one split")
    split = named or split
    if base in SETS:
        source = SETS[base]
        return hub_rows(source.hub, config=source.config, split=split or source.split, limit=limit)
    if base in TFDS:
        return tfds_rows(base, split=split or TFDS[base])
    if is_place(base):
        return place_rows(base, split=split, limit=limit)
    if base.count("/") == 1:
        return hub_rows(base, config="", split=split, limit=limit)
    raise UserError(
        f"no set is called {name!r}: use one of {', '.join([*SETS, *TFDS])}; or a hub id OWNER/NAME[@SPLIT]; or a path"
    )


def read_row(row: Row, *, source: str, seed: int, needs: Needs = ANSWERS_ALONE) -> Fields:
    """Return what a row says, by its columns; ValueError when it is malformed or the columns are no known ones.

    Where a reward needs the whole row, it is meta["row"].
    """
    fields = read_columns(row, source=source, seed=seed, answered=needs.answers)
    return fields._replace(meta=fields.meta | {"row": row.value}) if needs.rows else fields


def read_columns(row: Row, *, source: str, seed: int, answered: bool) -> Fields:
    """Return what a row says; `answered`: it must have an answer to grade against."""
    columns = set(row.value)
    if {"task", "problem", "answer", "meta"} <= columns:
        if wrong := fault(row.value, FIELDS):
            raise ValueError(wrong)
        return Fields(*(row.value[name] for name in Fields._fields))
    if "exploration" in columns:
        return read_plan(row.value, source=source)
    if GPQA[0] in columns or "choices" in columns or "options" in columns:
        return read_mcq(row.value, source=source, index=row.index, seed=seed)
    if columns & set(ASKED) and (columns & set(GOLD) or not answered):
        return read_math(row.value, source=source, answered=answered)
    names = printable(", ".join(sorted(columns)), lines=False)[:LONGEST]
    raise ValueError(
        f"columns are {names}: needed are problem (or question, prompt, messages) and answer (or solution, "
        "ground_truth, verl's reward_model), or question, choices (or options) and answer"
    )


def to_problem(
    fields: Fields, source: str, index: int, prompt: str, chat: Chat, where: str, *, answers: bool = True
) -> Problem:
    """Return the Problem that a model is asked; without a `prompt`, `answers` says whether a grader wants a box."""
    prompt = prompt or default_prompt(fields.problem, choices="choices" in fields.meta, graded=answers)
    words = prompt_text(prompt, problem=fields.problem)
    return Problem(
        id=f"{source}-{index}",
        task=fields.task,
        question=chat(words, fields.meta["before"]) if "before" in fields.meta else chat(words),
        answer=fields.answer,
        difficulty=fields.difficulty,
        meta={**fields.meta, "source": source, "index": index, "problem": fields.problem, "where": where},
    )


def short_name(name: str) -> str:
    """Return a set's name in ids and records: of a path its last part without the suffix, of a hub id all of it.

    >>> short_name("/data/aime24.json"), short_name("math-ai/aime25@test"), short_name("amc")
    ('aime24', 'math-ai/aime25@test', 'amc')
    """
    if not is_place(name.partition("@")[0]):
        return name
    return name.partition("@")[0].rstrip("/").rpartition("/")[2].removesuffix(".gz").rsplit(".", 1)[0]
