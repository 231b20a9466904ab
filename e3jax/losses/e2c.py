"""E2C-RL: exploration tokens get λ times the advantage (ALGORITHMS B.4, `dp_actor.py`).

    Â[b, t] = λ[b, t] · A[b]        λ = coefficient on the plan, 1 elsewhere

before clipping and for both signs, without renormalisation; the loss is `losses/grpo.py`'s. Since λ > 0 multiplies
every branch, the dual clip's bound too, it is the token's policy loss times λ: its gradient is λ times as large, for a
negative advantage as well, so that failed plans are pushed down harder than failed derivations.

    advantage_bt = advantage_b[:, None] * exploration_weights(tokens, prompt_len, length, tags=tags, coefficient=2.0,
                                                              missing="plain")
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e3jax.errors import need, need_choice
from e3jax.phases import read_tokens

MISSING = ("plain", "original")


@dataclass(frozen=True)
class PlanWeights:
    """λ and its rule: config.grpo.e2c."""

    coefficient: float  # λ, of the plan's tokens; 1 is plain GRPO
    missing: str  # what counts as the plan where none is well formed

    def __post_init__(self):
        need(self.coefficient > 0, "coefficient", self.coefficient, "must be above 0; 1 is plain GRPO")
        need_choice(self, "missing", MISSING)


def exploration_weights(
    tokens_bt, prompt_len_b, length_b, *, tags: Sequence[int], coefficient: float, missing: str
) -> np.ndarray:
    """λ [B, T] float32 of rollouts (host arrays); 1 on prompts, padding and all that is no plan.

    "plain"     the plan that phases.py reads, its opening tag included where it was sampled; a plan that never ends,
                or is malformed before it ends, is no plan: 1
    "original"  all before the first </EXPLORATION>, else before the first <EXECUTION>; where neither occurs the WHOLE
                response: one that never plans, or is cut while planning, is amplified as a plan

    Both agree on responses that are well formed and start with the plan. ValueError for another `missing`.
    """
    if missing not in MISSING:
        raise ValueError(f"missing {missing!r}: use one of {', '.join(map(repr, MISSING))}")
    weight_bt = np.ones(tokens_bt.shape, np.float32)
    for b, (start, end) in enumerate(zip(prompt_len_b, length_b)):
        response = tokens_bt[b, start:end]
        if missing == "original":
            found = [np.flatnonzero(response == tags[i]) for i in (1, 2)]
            first, last = 0, next((int(at[0]) for at in found if len(at)), len(response))
        else:
            phases = read_tokens(response, tags, begun=tokens_bt[b, start - 1] == tags[0])
            first, last = phases.plan if phases.tags >= 2 else (0, 0)
            first = max(first - 1, 0)  # the opening tag, unless it is prompt
        weight_bt[b, start + first : start + last] = coefficient
    return weight_bt
