r"""Conversations in the forms that data sets have -> messages, and which of them a model is to learn.

    chat = read_chat({"question": "1+1?", "answer": "2"}, columns={})
    chat.form, chat.messages[1], chat.trained      # "question, answer" {"role": "assistant", "content": "2"} (1,)

The forms, looked for in this order:

    messages                [{"role", "content"}], OpenAI's; a content may be a list of text parts, and a weight of 0
                            leaves an assistant's message untrained
    conversations           [{"from", "value"}], ShareGPT's; or the same as messages
    PAIRS                   two columns of texts; the first two also of messages, TRL's, of which the second is trained
    + system                a system prompt beside any of them
    + input                 alpaca's: goes behind the instruction

A list may also be a JSON text, as CSV files have it. A thought in a field of its own (`reasoning_content`) is put into
<think> tags before the answer, as chat templates read it. ValueError says what is wrong with a row.
"""

import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from e3jax.readers import parse_json

PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("question", "response"),
    ("query", "response"), ("problem", "solution"), ("problem", "answer"), ("instruction", "output"),
    ("instruction", "response"),
)  # fmt: skip
LISTS = ("messages", "conversations")
SYSTEM, INPUT = ("system", "system_prompt"), "input"
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "assistant": "assistant", "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields of a message: vLLM's, OpenRouter's, gpt-oss's
NAMED = ("messages", "prompt", "response", "system")  # what columns can be named for
Message = dict[str, str]  # {"role", "content"}


class Chat(NamedTuple):
    """One conversation."""

    messages: list[Message]
    trained: tuple[int, ...]  # the assistant's messages that are learned
    form: str  # of the row, for the log
    pair: tuple[str, str] | None = None  # prompt and response as texts, where the row has just these


def read_chat(row: Mapping[str, Any], *, columns: Mapping[str, str]) -> Chat:
    """Return the conversation of a row; `columns` {"prompt": "Frage", …} names what the row calls otherwise.

    >>> read_chat({"instruction": "Add.", "input": "1, 2", "output": "3"}, columns={}).messages[0]["content"]
    'Add.\\n\\n1, 2'
    """
    if columns:
        for name in columns.values():
            if name not in row:
                raise ValueError(f"there is no column {name!r}, which the config names")
        row = {ours: row[theirs] for ours, theirs in columns.items()}
    filled = {name for name, value in row.items() if value is not None}
    chat = next((read_list(row, name) for name in LISTS if name in filled), None)
    chat = chat or next((read_pair(row, pair) for pair in PAIRS if filled >= set(pair)), None)
    if chat is None:
        names = ", ".join(sorted(map(str, row)))[:200]
        raise ValueError(
            f"columns are {names}: needed are {', '.join(LISTS)}, or a pair like {' and '.join(PAIRS[0])} "
            "(docs/your-own.md has all); or name yours in the stage's `columns`"
        )
    if not chat.trained:
        raise ValueError("no message of the assistant is to be learned")
    system = next((row[name] for name in SYSTEM if name in filled and row[name] != ""), None)
    if system is None or chat.messages[0]["role"] == "system":
        return chat
    first = {"role": "system", "content": text_of(system, "the system prompt")}
    return Chat([first, *chat.messages], tuple(i + 1 for i in chat.trained), chat.form)


def read_list(row: Mapping[str, Any], name: str) -> Chat:
    """Return the conversation of a column of messages, in OpenAI's or ShareGPT's form."""
    items = read_messages(row[name], name)
    trained = tuple(i for i, m in enumerate(items) if m["role"] == "assistant" and m["weight"])
    return Chat([plain(m) for m in items], trained, name)


def read_pair(row: Mapping[str, Any], pair: tuple[str, str]) -> Chat:
    """Return the conversation of two columns: texts, or TRL's lists of messages."""
    form, (asked, said) = ", ".join(pair), (row[name] for name in pair)
    if isinstance(asked, list) or isinstance(said, list):
        before = read_messages(asked if isinstance(asked, list) else [{"role": "user", "content": asked}], pair[0])
        after = read_messages(said if isinstance(said, list) else [{"role": "assistant", "content": said}], pair[1])
        items = [plain(m) for m in (*before, *after)]
        trained = range(len(before), len(items))
        return Chat(items, tuple(i for i in trained if items[i]["role"] == "assistant"), f"{form} as messages")
    words, answer = text_of(asked, f"the {pair[0]}"), text_of(said, f"the {pair[1]}")
    if pair[0] == "instruction" and INPUT in row and row[INPUT]:
        words, form = f"{words}\n\n{text_of(row[INPUT], 'the input')}", f"instruction, input, {pair[1]}"
    turns = [{"role": "user", "content": words}, {"role": "assistant", "content": answer}]
    return Chat(turns, (1,), form, (words, answer))


def read_messages(value: Any, name: str) -> list[dict[str, Any]]:
    """Return messages as {"role", "content", "weight"}, whatever form they have; ValueError."""
    items = structured(value)
    if not isinstance(items, list) or not items:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a list of messages")
    return [read_message(item, f"{name}[{i}]") for i, item in enumerate(items)]


def read_message(item: Any, at: str) -> dict[str, Any]:
    """Return one message as {"role", "content", "weight"}; `at` says which, for errors."""
    if not isinstance(item, dict) or not ({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys()):
        raise ValueError(f"{at} is {reprlib.repr(item)}, not an object with role and content (or from and value)")
    speaker, content = (item["role"], item["content"]) if "role" in item else (item["from"], item["value"])
    role = SPEAKERS[speaker] if "role" not in item and speaker in SPEAKERS else speaker
    if role not in ROLES:
        known = ROLES if "role" in item else SPEAKERS
        raise ValueError(f"{at} is by {reprlib.repr(speaker)}: known are {', '.join(known)}")
    if item.get("tool_calls"):
        raise ValueError(f"{at} has tool_calls, which are not read: write them into its content")
    content = text_of(content, at)
    for name in THOUGHTS:
        if name in item and item[name] and role == "assistant" and "</think>" not in content:
            thought = text_of(item[name], f"{name} of {at}").strip("\n")
            content = f"<think>\n{thought}\n</think>\n\n{content}"
    weight = item["weight"] if "weight" in item and item["weight"] is not None else 1
    if weight not in (0, 1):
        raise ValueError(f"the weight of {at} is {reprlib.repr(weight)}, not 0 or 1")
    return {"role": role, "content": content, "weight": weight}


def plain(message: dict[str, Any]) -> Message:
    """Return what a chat template reads of a message."""
    return {"role": message["role"], "content": message["content"]}


def text_of(value: Any, name: str) -> str:
    """Return a content as text: it may be a list of OpenAI's text parts. ValueError for none, or an empty one.

    >>> text_of([{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}], "x")
    '1+1?'
    """
    if isinstance(value, list):
        for part in value:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"{name} has the part {reprlib.repr(part)}: only parts of type text are read")
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a text")
    return value


def structured(value: Any) -> Any:
    """Return the list or object of a JSON text, as CSV files and some parquet files hold it; anything else as it is.

    >>> structured('{"ground_truth": "2"}'), structured("{a, b}"), structured([1])
    ({'ground_truth': '2'}, '{a, b}', [1])
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def as_row(chat: Chat) -> dict[str, Any]:
    """Return a row of which `read_chat` makes the same conversation.

    >>> as_row(read_chat({"question": "1+1?", "answer": "2"}, columns={}))["messages"][1]
    {'role': 'assistant', 'content': '2', 'weight': 1}
    """
    return {"messages": [m | {"weight": int(i in chat.trained)} for i, m in enumerate(chat.messages)]}


def named_columns(columns: str) -> dict[str, str]:
    """Return {"prompt": "Frage", "response": "Antwort"} of "prompt=Frage,response=Antwort"; ValueError.

    >>> named_columns("messages=chat"), named_columns("")
    ({'messages': 'chat'}, {})
    """
    pairs = [tuple(x.strip() for x in part.partition("=")[::2]) for part in columns.split(",") if part.strip()]
    named = dict(pairs)
    wrong = [name for name, theirs in pairs if name not in NAMED or not theirs]
    parts = named.keys() - {"system"}
    if wrong or len(named) < len(pairs) or (pairs and parts not in ({"messages"}, {"prompt", "response"})):
        raise ValueError("name messages=COLUMN, or prompt=COLUMN,response=COLUMN; system=COLUMN may stand beside them")
    return named
