r"""Check Theorem J.3 (e3 App. J) on many random policies at once, in float64: what holds, and what does not.

One state, π = softmax(M) over K + 1 actions with entropy H; ā the likeliest one, not a*; q the runner-up,
ε = π_ā − π_q. A step on a drawn action a with advantage A is M ← M + η A (e_a − π) (Lemma J.2), and ∇H = −v with
v_a = π_a (H + log π_a) (Lemma J.1). So with A = −1 the entropy changes by η T(a) + O(η²), T(a) = v_a − Σ_b π_b v_b.
Checked by `verify`:

    rise        T(ā) > 0 and H rises after a small step; the chance that H rises is at least π_ā               holds
    bound       π_q > e^-H  ⟹  T(ā) >= (1 − π_ā) (ε + ε² / (2 π_ā)) >= (1 − π_ā) ε² / 2                        holds
    paper's     π_q > e^-H  ⟹  T(ā) >= c K ε² (1 − π_ā) with one c > 0 for all K                        does not hold
    masked      a wrong action leaves M as it is, so H stays with chance 1 − π(a*)                             holds
    mean        Σ_a π_a T(a) = 0: to first order the *expected* change of H is 0, whatever the policy          holds

The paper's last step bounds 1/π_ā from below by K; but π_ā >= 1/(K + 1) bounds it from above. T is at most H + 1 <=
log(K + 1) + 1, so c = O(log K / K): `smallest_constant` shows it. For one K the statement holds, with c = 1/(2K).

The last line is not in the paper. To second order the change is the same for A = −1 and A = 1: the curvature of H times
the variance of the step. It is negative for most policies, so "rises with chance >= π_ā" is not "rises on average".

    verify(random_policies(np.random.default_rng(0), count=10_000, actions=100))["rise"]      # 1.0
"""

import numpy as np


def random_policies(rng, *, count: int, actions: int):
    """Draw M [N, K + 1]: Gaussian logits of width .3 to 5, half of them with a likely `stop` (last) as in e3 App. A.1.

    a* is action 0. The theorem assumes that it is not the likeliest action; where it is, it is made the least likely.
    """
    logits = rng.normal(size=(count, actions + 1)) * rng.uniform(0.3, 5.0, size=(count, 1))
    logits[::2, -1] = logits[::2].max(axis=1) + rng.uniform(0.0, 2.0, size=len(logits[::2]))
    best = logits.argmax(axis=1) == 0
    logits[best, 0] = logits[best].min(axis=1) - 1.0
    return logits


def log_softmax(logits):
    """Return log π over the last axis, float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def entropy(logp):
    """Return −Σ π log π over the last axis, in nats."""
    return -(np.exp(logp) * logp).sum(axis=-1)


def alignment(logp):
    """Return T(a) = v_a − Σ_b π_b v_b, v_a = π_a (H + log π_a): H's first-order change per η for A = −1 (Eqs. 24-26).

    >>> alignment(np.log([[0.5, 0.25, 0.25]])).round(4).tolist()
    [[0.13, -0.13, -0.13]]
    """
    v = np.exp(logp) * (entropy(logp)[..., None] + logp)
    return v - (np.exp(logp) * v).sum(axis=-1, keepdims=True)


def entropy_after(logp, *, step: float, sign: float):
    """Return the exact H [N, K + 1] after M ← M + step · sign · (e_a − π), for each action a alone, in O(K) per policy.

    All steps share M − step · sign · π and differ in one logit, so log Z and Σ π M are corrected, not summed anew.
    """
    base = logp - step * sign * np.exp(logp)
    weight = np.exp(base)
    total, moment = weight.sum(axis=-1, keepdims=True), (weight * base).sum(axis=-1, keepdims=True)
    lifted = np.exp(base + step * sign)
    new_total = total + lifted - weight
    new_moment = moment + lifted * (base + step * sign) - weight * base
    return np.log(new_total) - new_moment / new_total


def verify(logits, *, step: float = 1e-4) -> dict:
    """Return the share of policies for which each statement holds (1.0: all), and the expected change of H.

    `step` is η. A rise counts if H grows by more than float64's rounding. Where T(ā) is below 1e-9 (near-uniform
    policies), a step decides nothing, and the policy counts for the first-order statement only.
    """
    logp = log_softmax(logits)
    probs, h, t = np.exp(logp), entropy(logp), alignment(logp)
    rows, likeliest = np.arange(len(logp)), logp.argmax(axis=1)
    top, t_top = probs[rows, likeliest], t[rows, likeliest]
    second = np.partition(probs, -2, axis=1)[:, -2]
    gap, covered = top - second, second > np.exp(-h)
    wrong = np.ones(logp.shape[1], bool)
    wrong[0] = False  # a*
    rises = (entropy_after(logp, step=step, sign=-1.0) - h[:, None] > 1e-13) & wrong
    bound = (1 - top) * (gap + gap**2 / (2 * top))
    decidable = t_top > 1e-9
    after_mask = np.where(wrong, *(entropy_after(logp, step=s, sign=1.0) for s in (0.0, step)))  # A = max(2r − 1, 0)
    same = ((np.abs(after_mask - h[:, None]) <= 1e-13) * probs).sum(axis=1)
    mean_change = {
        sign: (probs * (entropy_after(logp, step=0.01, sign=s) - h[:, None])).sum(axis=1)
        for sign, s in (("negative", -1.0), ("positive", 1.0))
    }
    return {
        "policies": len(logp),
        "first_order": float((t_top > 0).mean()),
        "rise": float(rises[rows, likeliest][decidable].mean()),
        "decidable": float(decidable.mean()),
        "chance": float(((rises * probs).sum(axis=1) >= top - 1e-12)[decidable].mean()),
        "chance_mean": float((rises * probs).sum(axis=1).mean()),
        "top_mean": float(top.mean()),
        "covered": int(covered.sum()),
        "bound": float((t_top >= bound - 1e-12)[covered].mean()),
        "masked": float((np.abs(same - (1 - probs[:, 0])) < 1e-8).mean()),
        "masked_chance_mean": float(same.mean()),
        "mean_first_order": float(np.abs((probs * t).sum(axis=1)).max()),
        "mean_change_negative": float(mean_change["negative"].mean()),
        "mean_change_positive": float(mean_change["positive"].mean()),
        "mean_falls_negative": float((mean_change["negative"] < 0).mean()),
    }


def smallest_constant(sizes=(10, 100, 1_000, 10_000, 100_000)) -> dict[int, float]:
    """Return {K: min of T(ā) / (K ε² (1 − π_ā))} over policies with π_q > e^-H, the rest spread evenly.

    A universal constant of Theorem J.3 would have to lie below all of them, but they fall like log K / K.
    """
    smallest = {}
    top, second = (x.ravel() for x in np.meshgrid(np.linspace(0.02, 0.98, 97), np.linspace(0.01, 0.97, 97)))
    possible = (top > second + 1e-9) & (top + second < 1 - 1e-9)
    top, second = top[possible], second[possible]
    for actions in sizes:
        rest = (1 - top - second) / (actions - 1)
        kept = rest < second
        p, q, r = top[kept], second[kept], rest[kept]
        h = -p * np.log(p) - q * np.log(q) - (actions - 1) * r * np.log(r)
        v = [x * (h + np.log(x)) for x in (p, q, r)]
        t = v[0] - (p * v[0] + q * v[1] + (actions - 1) * r * v[2])
        covered = q > np.exp(-h)
        smallest[actions] = float((t / (actions * (p - q) ** 2 * (1 - p)))[covered].min())
    return smallest
