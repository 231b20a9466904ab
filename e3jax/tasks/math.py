r"""Mathematics: rows of many schemas -> the bare problem, its gold answer and a difficulty label.

    fields = read_math({"problem": "What is 1+1?", "answer": "2"}, source="mine")

A row is malformed when a text is missing or empty; ValueError says which. Which files and hubs rows come from is in
tasks/sets.py, prompts in tasks/prompts.py.
"""

import re
from decimal import Decimal
from math import isfinite
from typing import Any, NamedTuple

from e3jax.rewards.extract import last_boxed
from e3jax.tasks.chats import INPUT, LISTS, Message, plain, read_messages, structured, text_of

QUESTIONS = ("problem", "question", "Problem", "Question")  # columns that hold it in one set or another
ANSWERS = ("answer", "expected_answer", "Answer", "final_answer")
TEXTS = (*QUESTIONS, "prompt", "instruction", "query")  # columns that hold a question as a text
TALKS = ("prompt", *LISTS)  # columns that hold one as messages
SOLUTIONS = ("solution", "completion", "response", "output")  # worked out: the answer stands in the last box, if any
TRUTH, VERL = "ground_truth", "reward_model"
ASKED, GOLD = (*TEXTS, *LISTS), (*ANSWERS, TRUTH, *SOLUTIONS, VERL, *LISTS)
LABELS = ("difficulty", "level", "Difficulty", "problem_type")
KEPT = (
    "id", "ID", "unique_id", "problem_idx", "year", "url", "subject", "level", "difficulty", "domain", "source",
    "category", "src", "problem_type", "problem_source", "pass_rate_72b_tir", "pass_rate", "reward", "data_source",
)  # fmt: skip
MOST_BITS = 14_000  # of an integer: Python writes out 4,300 digits
# What training sets put behind the problem; ours comes from the config. The first is DeepScaleR-10K's, the second e3's.
SUFFIXES = ("Let's reason step by step", "Let's think step by step and output the final answer within \\boxed{}")


class Fields(NamedTuple):
    """What a row says, whatever its schema: all but the prompt."""

    task: str  # "math" or "mcq"
    problem: str  # bare: no instruction, no chat
    answer: str
    difficulty: str
    meta: dict[str, Any]  # what else is worth keeping


def read_math(row: dict[str, Any], *, source: str, answered: bool = True) -> Fields:
    """Read a row with a question and its answer, in columns of ASKED and GOLD: ours, TRL's, verl's or of fine-tuning.

    `answered` False: the answer may be missing, and is "" then. ValueError says what is missing or empty.
    """
    talk = talk_of(row)
    before, problem = ([], text_question(row)) if talk is None else last_question(talk)
    try:
        answer = gold(answer_of(row, talk))
    except ValueError:
        if answered:
            raise
        answer = ""
    kept = {name: row[name] for name in KEPT if name in row and row[name] is not None}
    kept |= extra_info(row) if VERL in row else {}
    if before:
        kept["before"] = before
    return Fields("math", problem, answer, label(kept, source), kept)


def talk_of(row: dict[str, Any]) -> Any:
    """Return a row's conversation, None where its question is a text. With verl's reward_model, `prompt` is one."""
    for name in TALKS:
        if name in row and row[name] is not None:
            items = structured(row[name])
            if isinstance(items, list) and items and all(isinstance(item, dict) for item in items):
                return items
    if VERL in row and "prompt" in row:
        prompt = row["prompt"]
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return None


def text_question(row: dict[str, Any]) -> str:
    """Return the question of a row that holds it as a text, with alpaca's input behind it; ValueError."""
    problem = pick(row, TEXTS)
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"the problem is {problem!r}, not a text")
    if "instruction" in row and row["instruction"] is problem and INPUT in row and row[INPUT]:
        problem = f"{problem}\n\n{text_of(row[INPUT], 'the input')}"
    return problem.strip()


def last_question(talk: Any) -> tuple[list[Message], str]:
    """Return the messages before the user's last one, and its words without a training set's instruction."""
    fields = ({"role", "content"}, {"from", "value"})
    if not isinstance(talk, list) or not all(isinstance(m, dict) and any(f <= set(m) for f in fields) for m in talk):
        raise ValueError(f"prompt is no list of messages with role and content but {str(talk)[:60]}")
    items = [plain(m) for m in read_messages(talk, "prompt")] if talk else []
    users = [i for i, m in enumerate(items) if m["role"] == "user"]
    if not users:
        raise ValueError("prompt has 0 user turns")
    problem = without_instruction(items[users[-1]]["content"])
    if not problem:
        raise ValueError("the problem is nothing but an instruction")
    return items[: users[-1]], problem


def answer_of(row: dict[str, Any], talk: Any = None) -> Any:
    r"""Return what a row's responses are graded against: its answer, or of a worked solution what its last box holds.

    A conversation that the assistant ends holds its solution itself.

    >>> answer_of({"solution": "So $1+1$ is $\\boxed{2}$."}), answer_of({"reward_model": '{"ground_truth": "2"}'})
    ('2', '2')
    """
    if VERL in row:
        model = structured(row[VERL])
        if not isinstance(model, dict) or TRUTH not in model:
            raise ValueError("reward_model has no ground_truth")
        return model[TRUTH]
    if any(name in row and row[name] is not None for name in (*ANSWERS, TRUTH)):
        return pick(row, (*ANSWERS, TRUTH))
    solution = next((structured(row[name]) for name in SOLUTIONS if name in row and row[name] is not None), talk)
    if isinstance(solution, list):
        *_, last = read_messages(solution, "the solution")
        solution = last["content"] if last["role"] == "assistant" else None
    if solution is None:
        raise ValueError(f"no {ANSWERS[0]}")
    return last_boxed(solution) or solution if isinstance(solution, str) else solution


def extra_info(row: dict[str, Any]) -> dict[str, Any]:
    """Return what verl's extra_info says, without the split and index that the row had elsewhere."""
    extra = structured(row["extra_info"]) if "extra_info" in row else {}
    extra = extra if isinstance(extra, dict) else {}
    return {n: v for n, v in extra.items() if v is not None and n not in ("split", "index")}


def read_plan(row: dict[str, Any], *, source: str) -> Fields:
    """Read a row of E2C's training sets: question (or prompt), exploration and, except for EF-SFT, its execution.

    A `re_execution`, made from the exploration, is preferred to the `execution` that the exploration was summarised
    from: it is the causal one (docs/algorithms.md, "Causal data"). The answer may be missing; ValueError says what else
    is.
    """
    problem, plan = pick(row, (*QUESTIONS, "prompt")), row["exploration"]
    execution = next((row[n] for n in ("re_execution", "execution") if row.get(n)), "")
    for name, text in (("question", problem), ("exploration", plan), ("execution", execution or "none")):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"the {name} is {text!r}, not a text")
    answer = next((row[n] for n in ANSWERS if n in row and row[n] not in (None, "")), None)
    kept = {name: row[name] for name in KEPT if name in row and row[name] is not None}
    kept |= {"exploration": plan.strip(), "execution": execution.strip()}
    return Fields("math", problem.strip(), "" if answer is None else gold(answer), label(kept, source), kept)


def without_instruction(words: str) -> str:
    """Return the problem that stands before a training set's own instruction.

    >>> without_instruction("What is 1+1? Let's reason step by step. Enclose …")
    'What is 1+1?'
    """
    for suffix in SUFFIXES:
        words = words.partition(suffix)[0]
    return words.strip()


def pick(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first of these columns that the row has and that is not None; ValueError when there is none."""
    for name in names:
        if name in row and row[name] is not None:
            return row[name]
    raise ValueError(f"no {names[0]}")


def gold(answer: Any) -> str:
    r"""Return the answer as graders read it.

    Of one \boxed{} that is its inside, of GSM8K's answers the part behind "####". Whole floats become integers, other
    floats are written out without an exponent, and AIME's three digits lose their leading zeros. ValueError when the
    answer is empty or no single text or number.

    >>> gold(142.0), gold("25.0"), gold("025"), gold("\\boxed{\\frac{1}{2}}"), gold("3 * 4 = 12\n#### 1,012")
    ('142', '25', '25', '\\frac{1}{2}', '1012')
    >>> gold(1e-05), gold(1e16), gold(-2.5e-07)
    ('0.00001', '10000000000000000', '-0.00000025')
    """
    if isinstance(answer, list | tuple):
        if len(answer) != 1:
            raise ValueError(f"{len(answer)} answers, not one")
        answer = answer[0]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError(f"the answer is {answer!r}, neither text nor number")
    if isinstance(answer, int) and answer.bit_length() > MOST_BITS:
        raise ValueError(f"the answer is an integer of {answer.bit_length()} bits, too long to be written out")
    text = f"{Decimal(repr(float(answer))):f}" if isinstance(answer, float) and isfinite(answer) else str(answer)
    if "####" in text:
        text = text.rpartition("####")[2].replace(",", "")
    text = unboxed(text.strip())
    if re.fullmatch(r"[+-]?\d+\.0+", text):
        text = text.partition(".")[0]
    if re.fullmatch(r"0\d{1,2}", text):  # 0101 may be a number in base 2
        text = str(int(text))
    if not text:
        raise ValueError("the answer is empty")
    if text in ("nan", "inf", "-inf"):
        raise ValueError(f"the answer is {text}")
    return text


def unboxed(text: str) -> str:
    r"""Return the inside of a text that is one \boxed{…} and nothing else; any other text as it is."""
    if not (text.startswith("\\boxed{") and text.endswith("}")):
        return text
    depth, inside = 1, text[len("\\boxed{") : -1]
    for i, c in enumerate(inside):
        depth += (c == "{") - (c == "}") if inside[i - 1 : i] != "\\" else 0
        if depth == 0:
            return text
    return inside.strip()


def label(kept: dict[str, Any], source: str) -> str:
    """Return "level 3", "difficulty 7.5", or the set's name where a row carries no difficulty."""
    for name in LABELS:
        if name in kept and isinstance(kept[name], str | int | float) and name != "problem_type":
            value = kept[name]
            text = f"{value:g}" if isinstance(value, float) else str(value)
            return text if not text.replace(".", "").isdigit() else f"{name.lower()} {text}"
    return source
