"""Ask one model several things about every problem, each as a part of its own, and count what every response costs.

    drawn = ask(bench, "plan", [Request(0, (0, 1, 2), prompt, budget=512, forced=1)], stop=(close,), temperature=0.9,
                top_p=0.95)
    response, call = drawn[0, 2]        # of problem 0, sample 2

Responses are kept as they finish (rollout/responses.py), and none is drawn twice. The noise of part "plan" is not that
of "chain".

Tokens are counted once, where they were drawn. A prompt is read, not drawn: `forced` are its tokens that we put into
the model's turn (tags), `prompt` all others (the question, instructions, copies of plans). Samples of one prompt share
its prefill, so both are counted with the first of them.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax

from e3jax.errors import UserError
from e3jax.rollout.bench import Bench, user_turn
from e3jax.rollout.responses import Request, Response


class Call(NamedTuple):
    """What one response cost, in tokens. Equal calls are one response."""

    part: str
    sample: int
    sampled: int
    forced: int
    prompt: int


Drawn = dict[tuple[int, int], tuple[Response, Call]]  # (problem, sample) -> …


def turn_tokens(bench: Bench, words: str) -> list[int]:
    """Return the tokens of a user's turn with these words."""
    tokenizer = bench.pretrained.tokenizer
    return tokenizer.encode(user_turn(words, tokenizer, bench.chat))


def ask(
    bench: Bench, part: str, requests: Iterable[Request], *, stop: Sequence, temperature: float, top_p: float
) -> Drawn:
    """Return the responses and their calls, sampling those that are not there yet.

    A budget that goes beyond the model's length is cut to it; UserError where a prompt alone fills it.
    """
    requests, most = list(requests), bench.pretrained.model.config.max_length
    if not requests:
        return {}
    longest = max(requests, key=lambda r: len(r.prompt))
    if len(longest.prompt) >= most:
        raise UserError(
            f"{bench.label}, {bench.name}, {part}: the prompt of problem {bench.problems[longest.problem].id} has "
            f"{len(longest.prompt)} tokens, the model's length is {most}: shorter plans or fewer of them (config.ks)"
        )
    part_bench = bench._replace(
        key=jax.random.fold_in(bench.key, zlib.crc32(part.encode())),
        sampling=replace(bench.sampling, temperature=temperature, top_p=top_p),
    )
    part_bench.draw(part, [r._replace(budget=min(r.budget, most - len(r.prompt))) for r in requests], stop)
    out = {}
    for r in requests:
        for i, g in enumerate(r.samples):
            response, read = bench.responses.known[part, r.problem, g], (r.forced, len(r.prompt) - r.forced)
            out[r.problem, g] = response, Call(part, g, len(response.tokens), *(read if i == 0 else (0, 0)))
    return out
