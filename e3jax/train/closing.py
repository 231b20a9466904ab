"""Where a response begins to end, for `gradients="no-eos"` (losses/grpo.py `token_weights`).

closing_bt = closing_mask(tokenizer, rollouts, closing="</think>", match="text")   # bool [B, T]
"""

from bisect import bisect_left

import numpy as np

from e3jax.errors import need
from e3jax.types import Rollouts


def closing_mask(tokenizer, r: Rollouts, *, closing: str, match: str) -> np.ndarray:
    """Return bool [B, T]: True from the token that begins the first `closing` of a response onward.

    `match` "text" looks for `closing` in the decoded response, however the tokenizer cuts it there: "</think>" is one
    token for Qwen3 and three for Llama, whose first one joins the blank or the point before it. "token" is the
    reference's rule (`gradients="no-eos"` of its Countdown code): the first sampled token that equals the one token
    `closing`, whatever follows it; its "</" is Llama's 524.
    """
    if match == "token":
        return np.logical_or.accumulate((r.tokens == tokenizer.encode(closing)[0]) & r.sampled, axis=1)
    mask_bt = np.zeros(r.tokens.shape, bool)
    for b, (first, end) in enumerate(zip(r.prompt_len, r.length)):
        places = first + np.flatnonzero(r.sampled[b, first:end])  # what an environment says closes nothing
        tokens = r.tokens[b, places].tolist()
        at = tokenizer.decode(tokens).find(closing)
        if at >= 0:  # the shortest prefix that shows the character `at` ends with the token that holds it
            shown = bisect_left(range(len(tokens)), True, key=lambda n, t=tokens: len(tokenizer.decode(t[:n])) > at)
            mask_bt[b, places[shown - 1] :] = True
    return mask_bt


def check_closing(tokenizer, closing: str, *, match: str) -> None:
    """Refuse a `closing` that this tokenizer could never show, so that "no-eos" cannot silently do nothing."""
    tokens = tokenizer.encode(closing)
    if match == "token":
        parts = f"is {len(tokens)} tokens of this tokenizer ({tokens})"
        cure = "closing_match='token' wants one, e.g. '</'; 'text' finds it however it is cut"
        need(len(tokens) == 1, "grpo.weights.closing", closing, f"{parts}: {cure}")
    shown = bool(closing.strip()) and closing in tokenizer.decode(tokens)
    cure = "name what ends a thought, e.g. '</think>'"
    need(shown, "grpo.weights.closing", closing, f"does not appear in decoded text (empty, or a special token): {cure}")
