r"""Files that somebody else may have written: their values, checked, or one sentence that names the file and the line.

    config = read_json("model/config.json", dict)
    times = read_json_lines("times.jsonl", {"name": str, "minutes": float})

JSON lines are separated by "\n" alone: a text may hold U+2028, where str.splitlines() would cut it. A byte order mark
is skipped, at the start of any line because files are concatenated. A *shape* says what a value has to be:

    str, int, float, bool, dict, list, None, object   int: whole, below 2^53; float: finite; object: anything
    (shape, …)                  any of these
    [shape], [shape, shape, …]  a list of any length; a list of just so many
    {"key": shape, "key?": …}   an object with these keys, the second optional, and perhaps others
    {str: shape}, {int: shape}  an object whose values have the shape; keys are any texts, or whole numbers
    function                    value -> "" or what is needed instead
"""

import codecs
import json
import math
import reprlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from e3jax.errors import UserError
from e3jax.storage import patiently, place

MOST_DEPTH = 100  # levels of nesting: deeper values end Python's recursion when they are printed or written
MOST_BYTES = 1 << 28  # of a file that is one JSON value: ours and the hub's have less than a hundredth
MOST_WHOLE = 2**53  # a browser reads larger whole numbers wrong
MOST = 1e100  # larger numbers overflow when they are added, scaled or drawn
NAMES = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object", list: "a list",
    None: "null",
}  # fmt: skip


class Line(NamedTuple):
    """One line of a JSON-lines file; `wrong` says why it has no value."""

    number: int  # from 1
    value: Any
    wrong: str


def read_bytes(path: epath.PathLike) -> bytes:
    """Return the bytes of a file, local or in a bucket; UserError where there is none or its text is UTF-16."""
    path = place(path)
    if not path.exists():
        raise UserError(f"{path} cannot be read, it does not exist: name a file")
    if not path.is_file():
        raise UserError(f"{path} cannot be read, it is {'a directory' if path.is_dir() else 'no file'}: name a file")
    data = patiently(f"read {path}", path.read_bytes)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    return data


def read_text_lines(path: epath.PathLike) -> list[str]:
    """Return the lines of a text file; UserError names the one that is not UTF-8."""
    lines = []
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        try:
            lines.append(line.decode("utf-8").removeprefix("\ufeff").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} line {number}: {not_utf8(error)}: save the file as UTF-8") from error
    return lines


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say which byte is none of UTF-8."""
    return f"not UTF-8 ({error.reason} at byte {error.start})"


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text; ValueError says in a few words what is wrong with it."""
    try:
        text = (text.decode("utf-8") if isinstance(text, bytes) else text).removeprefix("\ufeff")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(error)) from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MOST_DEPTH} levels") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if text.count("[") + text.count("{") > MOST_DEPTH and not is_shallow(value):
        raise ValueError(f"nested deeper than {MOST_DEPTH} levels")
    return value


def is_shallow(value: Any) -> bool:
    """Return whether lists and objects lie inside one another at most MOST_DEPTH times."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inside = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [x for values in inside for x in values if isinstance(x, dict | list)]
        if not level:
            return True
    return False


def read_json(path: epath.PathLike, shape: Any, *, advice: str = "mend it") -> Any:
    """Return the value of a JSON file; UserError says what is wrong and gives `advice`."""
    path = place(path)
    data = read_bytes(path) if not path.is_file() or path.stat().length <= MOST_BYTES else None
    if data is None:
        raise UserError(f"{path} has more than {MOST_BYTES >> 20} MiB: this is not the file that its name says")
    try:
        value = parse_json(data)
    except ValueError as error:
        raise UserError(f"{path} is {error}: {advice}") from None
    if wrong := fault(value, shape):
        raise UserError(f"{path}: {wrong}: {advice}")
    return value


def json_lines(data: bytes) -> Iterator[Line]:
    """Yield the value of every line that is not blank, or what is wrong with it."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                yield Line(number, parse_json(line), "")
            except ValueError as error:
                yield Line(number, None, str(error))


def read_lines(path: epath.PathLike, shape: Any) -> tuple[list[Any], list[str]]:
    """Return the values of a JSON-lines file that have the shape, and "line 3: what is wrong" of its other lines."""
    values, faults = [], []
    for number, value, wrong in json_lines(read_bytes(path)):
        if wrong := wrong or fault(value, shape):
            faults.append(f"line {number}: {wrong}")
        else:
            values.append(value)
    return values, faults


def read_json_lines(path: epath.PathLike, shape: Any) -> list[Any]:
    """Return the values of a JSON-lines file; UserError names the first line that is not one of the shape."""
    values, faults = read_lines(path, shape)
    if faults:
        raise UserError(f"{path} {faults[0]}: mend or remove the line")
    return values


def fault(value: Any, shape: Any, at: str = "") -> str:
    """Return what keeps `value` from having the shape, "" where nothing does.

    >>> fault({"step": "3"}, {"step": int}), fault({"x": [1, None]}, {"x": [(float, None)]})
    ("step is '3', not a whole number", '')
    """
    if isinstance(shape, list) and isinstance(value, list):
        return list_fault(value, shape, at)
    if isinstance(shape, dict) and isinstance(value, dict):
        return object_fault(value, shape, at)
    if isinstance(shape, tuple):
        fits = any(not fault(value, one) for one in shape)
    elif isinstance(shape, list | dict):
        fits = False
    elif shape is None or shape in NAMES or shape is object:
        fits = is_a(value, shape)
    else:
        needed = shape(value)
        return needed and f"{at or 'the value'} is {reprlib.repr(value)}, not {needed}"
    return "" if fits else f"{at or 'the value'} is {reprlib.repr(value)}, not {words(shape)}"


def is_a(value: Any, kind: Any) -> bool:
    """Return whether a value is of one of NAMES' kinds, or anything where the kind is `object`."""
    if kind is int:
        return type(value) is int and -MOST_WHOLE <= value <= MOST_WHOLE
    if kind is float:
        return type(value) in (int, float) and -MOST <= value <= MOST
    return value is None if kind is None else isinstance(value, kind)


def words(shape: Any) -> str:
    """Name a shape for a person."""
    if isinstance(shape, tuple):
        return " or ".join(map(words, shape))
    if isinstance(shape, list):
        return "a list" if len(shape) == 1 else f"a list of {len(shape)}"
    return NAMES.get(dict if isinstance(shape, dict) else shape, "another value")


def list_fault(value: list, shape: list, at: str) -> str:
    """Return the `fault` of a list."""
    if len(shape) != 1 and len(value) != len(shape):
        return f"{at or 'the value'} has {len(value)} parts, not {len(shape)}"
    if shape in ([str], [(float, None)]) and is_plain(value, shape[0]):
        return ""
    parts = shape * len(value) if len(shape) == 1 else shape
    return next((wrong for i, (x, one) in enumerate(zip(value, parts)) if (wrong := fault(x, one, f"{at}[{i}]"))), "")


def is_plain(value: list, kind: Any) -> bool:
    """Return whether a list is surely all texts, or all usual floats and nulls: quick for millions of tokens."""
    kinds = set(map(type, value))
    if kind is str:
        return kinds <= {str}
    numbers = [x for x in value if x is not None]
    usual = kinds <= {float, type(None)} and all(map(math.isfinite, numbers))
    return usual and (not numbers or (-MOST <= min(numbers) and max(numbers) <= MOST))


def object_fault(value: dict, shape: dict, at: str) -> str:
    """Return the `fault` of an object."""
    prefix = f"{at}." if at else ""
    if len(shape) == 1 and (kind := next(iter(shape))) in (str, int):
        odd = [key for key in value if kind is int and not is_whole(key)]
        if odd:
            return f"{prefix}{reprlib.repr(odd[0])} is no whole number"
        shape = dict.fromkeys(value, shape[kind])
        return next((wrong for k, one in shape.items() if (wrong := fault(value[k], one, f"{prefix}{k[:40]}"))), "")
    for key, one in shape.items():
        name = key.removesuffix("?")
        if name not in value and name == key:
            return f"there is no {prefix}{key}"
        if name in value and (wrong := fault(value[name], one, f"{prefix}{name}")):
            return wrong
    return ""


def is_whole(key: str) -> bool:
    """Return whether a key is a whole number as Python writes it, 0 to MOST_WHOLE."""
    return key.isascii() and key.isdigit() and len(key) < 17 and str(int(key)) == key and int(key) <= MOST_WHOLE
