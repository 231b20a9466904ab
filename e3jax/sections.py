"""From a section of a config to the frozen dataclass that the code takes; and the merge of a stage over its base.

loss = build(GrpoLoss, {"clip_low": 0.2, …})    # an unknown, missing or impossible field is one error that names it
merged({"loss": {"kl_coef": 0.1, "clip_low": 0.2}}, {"loss": {"kl_coef": 0.0}})   # deep: clip_low stays
"""

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from e3jax.errors import need, section

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", NoneType: "None"}


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return the dataclass `kind` of a section's values; fields that are dataclasses are built from their subsections.

    Refuses fields that `kind` lacks, missing fields, and values of another type (errors.need); the dataclass itself
    refuses what else is impossible. Lists become tuples. Within `errors.all_errors`, the dataclass is made even of
    refused values, so that all errors of a config are shown at once.
    """
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    hints = get_type_hints(kind)
    for name in sorted(set(values) - set(fields)):
        need(False, name, values[name], f"no such field: it has {', '.join(fields)}")
    given = {}
    for name, field in fields.items():
        if name not in values:
            bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            need(not bare, name, None, "the field is missing, and it has no default")
            continue
        value, hint = values[name], hints[name]
        subsections = [part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)]
        if subsections and isinstance(value, Mapping):
            with section(f"{name}.{{}}".format):
                value = build(subsections[0], value)
        value = tuple(value) if isinstance(value, list) else value
        need(fits(value, hint), name, value, f"use {words(hint)}")
        given[name] = value
    return kind(**given)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`, subsections field by field.

    >>> merged({"lr": 1, "loss": {"a": 1, "b": 2}}, {"loss": {"b": 3}, "steps": 4})
    {'lr': 1, 'loss': {'a': 1, 'b': 3}, 'steps': 4}
    """
    out = dict(base)
    for name, value in over.items():
        deeper = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
        out[name] = merged(out[name], value) if deeper else value
    return out


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value may stand where `hint` is annotated.

    >>> fits(3, float), fits(True, int), fits(None, float | None), fits((3, 4), tuple[int, ...])
    (True, False, True, True)
    """
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint)


def words(hint: Any) -> str:
    """Return in words which values may stand where `hint` is annotated.

    >>> words(float | None), words(int)
    ('a number or None', 'a whole number')
    """
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(words, get_args(hint)))
    kind = get_origin(hint) or hint
    return WORDS[kind] if kind in WORDS else f"a {kind.__name__}"
