"""One name for a model: what config.model.name stands for, spelled out into the fields that it sets.

    config = spelled_out(config.to_dict())      # model.preset, model.dtype, tokenizer, init.init_from

A hub id, a Hugging Face directory and a checkpoint of a run bring shape, tokenizer and weights. A preset is a shape
alone (models/presets.py).
"""

from typing import Any

import jax

from e3jax.checkpoint.pretrained import has_closed_words, model_config
from e3jax.errors import UserError, need
from e3jax.models.presets import presets

# fields that a name sets, with their defaults: configs/common.py
SET = {"model.preset": "tiny", "tokenizer": "words", "init.init_from": ""}
AUTO = "auto"  # config.model.dtype


def spelled_out(c: dict[str, Any]) -> dict[str, Any]:
    """Return a config, as nested dictionaries, with model.name and dtype "auto" replaced by what they stand for.

    init.init_from may say where the weights come from instead: a checkpoint that continues the named model. Refuses a
    name beside another field that says something else than the name. Number embeddings are those of the closed words:
    off with another tokenizer.
    """
    name = c["model"]["name"]
    c = c | {"model": c["model"] | {"dtype": dtype_of(name, c["model"]["dtype"])}}
    if not name:
        return c
    fields = named_fields(name)
    if c["init"]["init_from"]:
        fields["init.init_from"] = c["init"]["init_from"]
    for field, value in fields.items():
        given = value_at(c, field)
        advice = f"sets config.{field} too, which is {given!r} here: leave that at {SET[field]!r}, or set model.name=''"
        need(given in (SET[field], value), "model.name", name, advice)
    preset, tokenizer, init_from = (fields[field] if field in fields else value_at(c, field) for field in SET)
    init = c["init"] | {"init_from": init_from}
    init["number_embeddings"] = init["number_embeddings"] and tokenizer == SET["tokenizer"]
    return c | {"tokenizer": tokenizer, "model": c["model"] | {"preset": preset}, "init": init}


def dtype_of(name: str, dtype: str) -> str:
    """Return what a config's dtype means: "auto" is float32, and bfloat16 for a named model on an accelerator."""
    if dtype != AUTO:
        return dtype
    return "bfloat16" if name and jax.default_backend() != "cpu" else "float32"


def named_fields(name: str) -> dict[str, str]:
    """Return the fields that a name sets; refuse a name that is no model."""
    if name in presets():
        return {"model.preset": name}
    try:
        model_config(name)
    except UserError as error:
        need(False, "model.name", name, str(error))
        return {"tokenizer": name, "init.init_from": name}  # else tokenizer and task would be refused for it too
    tokenizer = SET["tokenizer"] if has_closed_words(name) else name
    return {"model.preset": name, "tokenizer": tokenizer, "init.init_from": name}


def value_at(c: dict[str, Any], field: str) -> Any:
    """Return the value of a dotted field."""
    for name in field.split("."):
        c = c[name]
    return c
