"""Asking one model several things about every problem, each a part of its own, and what every response cost.

    drawn = ask(bench, "plan", [Request(0, (0, 1, 2), prompt, forced=1, budget=512)], stop=(close,), temperature=0.9,
                top_p=0.95)
    response, call = drawn[0, 2]        # of problem 0, sample 2

Responses are kept as they finish (rollout/responses.py): who asks for what is there draws nothing. The noise of part
"plan" is not that of "chain".

Tokens are counted once, where they were drawn. What a request begins with is read, not drawn: `forced` are tokens that
we put into the model's turn (tags), `prompt` all others (the question, instructions, copies of plans). Samples of one
prompt share its prefill, so both are counted with the first of them.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax

from e3jax.errors import UserError
from e3jax.rollout.bench import Bench, user_turn
from e3jax.rollout.responses import Asked, Response


class Request(NamedTuple):
    """A prompt in tokens, which of its samples are wanted, and how long they may be."""

    problem: int
    samples: tuple[int, ...]
    prompt: Sequence[int]
    forced: int  # of the prompt's tokens
    budget: int


class Call(NamedTuple):
    """What one response cost, in tokens; equal calls are the same response."""

    part: str
    sample: int
    sampled: int
    forced: int
    prompt: int


Drawn = dict[tuple[int, int], tuple[Response, Call]]  # (problem, sample) -> …


def said(bench: Bench, words: str, *, thinking: bool, chat: str) -> list[int]:
    """A user's turn in tokens."""
    tokenizer = bench.pretrained.tokenizer
    return tokenizer.encode(user_turn(words, tokenizer, thinking=thinking, chat=chat))


def ask(
    bench: Bench, part: str, requests: Iterable[Request], *, stop: Sequence, temperature: float, top_p: float
) -> Drawn:
    """Responses and their calls; a budget that leaves the model's length is cut to it. UserError where nothing fits."""
    requests, most = list(requests), bench.pretrained.model.config.max_length
    if not requests:
        return {}
    longest = max(requests, key=lambda r: len(r.prompt))
    if len(longest.prompt) >= most:
        raise UserError(
            f"{bench.label}, {bench.name}, {part}: the prompt of problem {bench.problems[longest.problem].id} has "
            f"{len(longest.prompt)} tokens, the model's length is {most}: shorter plans or fewer of them (config.ks)"
        )
    own = bench._replace(
        key=jax.random.fold_in(bench.key, zlib.crc32(part.encode())),
        sampling=replace(bench.sampling, temperature=temperature, top_p=top_p),
    )
    own.draw(part, [Asked(r.problem, r.samples, r.prompt, min(r.budget, most - len(r.prompt))) for r in requests], stop)
    out = {}
    for r in requests:
        for i, g in enumerate(r.samples):
            response, read = bench.responses.known[part, r.problem, g], (r.forced, len(r.prompt) - r.forced)
            out[r.problem, g] = response, Call(part, g, len(response.tokens), *(read if i == 0 else (0, 0)))
    return out
