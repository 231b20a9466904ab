"""E2C-RL: exploration tokens get λ times the advantage (docs/algorithms.md, "λ: weighted plans"; `dp_actor.py`).

    Â[b, t] = λ[b, t] · A[b]        λ = coefficient on the plan, 1 elsewhere

before clipping and for both signs, without renormalisation; the loss is that of `losses/grpo.py`. Since λ > 0
multiplies every branch, the dual clip's bound too, a token's policy loss and its gradient are λ times as large. That
holds for a negative advantage as well, so failed plans are pushed down harder than failed derivations.

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
    """λ and where it applies: config.grpo.e2c."""

    coefficient: float  # λ on the plan's tokens; 1 is plain GRPO
    missing: str  # what counts as the plan where none is well formed: `exploration_weights`

    def __post_init__(self):
        need(self.coefficient > 0, "coefficient", self.coefficient, "must be above 0; 1 is plain GRPO")
        need_choice(self, "missing", MISSING)


def exploration_weights(
    tokens_bt, prompt_len_b, length_b, *, tags: Sequence[int], coefficient: float, missing: str
) -> np.ndarray:
    """Return λ [B, T], float32, of rollouts (host arrays); 1 on prompts, on padding and outside of the plan.

    `missing` says what counts as the plan (docs/algorithms.md, "λ without a plan"):

    "plain"     the plan that phases.py reads, with its opening tag where that was sampled. A plan that never ends, or
                is malformed before it ends, does not count: 1
    "original"  everything before the first </EXPLORATION>, else before the first <EXECUTION>. Where neither occurs,
                the WHOLE response: one that never plans, or is cut while planning, is amplified as a plan

    Both agree on responses that are well formed and start with the plan. ValueError for another `missing`.
    """
    if missing not in MISSING:
        raise ValueError(f"missing {missing!r}: use one of {', '.join(map(repr, MISSING))}")
    weight_bt = np.ones(tokens_bt.shape, np.float32)
    for b, (start, end) in enumerate(zip(prompt_len_b, length_b)):
        response = tokens_bt[b, start:end]
        if missing == "original":
            places = [np.flatnonzero(response == tags[i]) for i in (1, 2)]
            first, last = 0, next((int(at[0]) for at in places if len(at)), len(response))
        else:
            phases = read_tokens(response, tags, begun=tokens_bt[b, start - 1] == tags[0])
            first, last = phases.plan if phases.tags >= 2 else (0, 0)
            first = max(first - 1, 0)  # the opening tag, unless it is part of the prompt
        weight_bt[b, start + first : start + last] = coefficient
    return weight_bt
