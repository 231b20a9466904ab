"""The perplexity of a response under a model, of the response alone or given its prompt.

    PPL(y) = exp( mean_t −log p(y_t | y_<t) )                    the first token has no context and is not scored
    PPL(y | x) = exp( mean_t −log p(y_t | x, y_<t) )             every token is

OXA's confidence is the first, without question and chat template (docs/algorithms.md#confidence). Responses go through
the model sorted by length, in rows of few widths over all devices (rollout/likelihood.py).

    ppl = perplexities(model, params, responses, Batching(tokens=65_536, most=32_768, pad=0))
"""

from collections.abc import Callable, Sequence

import numpy as np

from e3jax.errors import UserError
from e3jax.models.qwen3 import Qwen3
from e3jax.rollout.likelihood import Batching, log_likelihoods

Tokens = Sequence[int]


def perplexities(
    model: Qwen3,
    params,
    responses: Sequence[Tokens],
    batching: Batching,
    *,
    prompts: Sequence[Tokens] | None = None,
    on_scored: Callable[[int], None] = lambda n: None,
) -> np.ndarray:
    """Return perplexities [N], float64, 1 and more; NaN where nothing is left to score.

    Only the first `batching.most` tokens of prompt and response are read. Without `prompts` responses are scored alone.
    Raise UserError for an empty prompt, or one that fills what is read.
    """
    pairs, most = [], batching.most
    for i, response in enumerate(responses):
        read = () if prompts is None else prompts[i]
        if prompts is not None and not 0 < len(read) < most:
            raise UserError(f"response {i}: a prompt of {len(read)} tokens, 1 to {most - 1} can be read")
        text, given = [*read, *response][:most], len(read) or 1
        pairs.append((text[:given], text[given:]))
    scored = [i for i, (_, said) in enumerate(pairs) if said]
    scores = log_likelihoods(model, params, [pairs[i] for i in scored], batching, on_scored=on_scored)
    ppl = np.full(len(pairs), np.nan)
    ppl[scored] = [np.exp(-one.logp / len(pairs[i][1])) for i, one in zip(scored, scores)]
    return ppl
