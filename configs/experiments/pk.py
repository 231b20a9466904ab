"""Train the bigram p^k model of e3's App. A with and without negative gradients (Fig. 10), in seven readings of it.

    python -m e3jax.didactic.run --config=configs/experiments/pk.py --workdir=runs/pk

Hardware and time: 2 quiet CPU cores, 2 min 31 s (183 s of processor time; once, 2026-11-24).
Expected (5 seeds, GRPO / mask; length is 6.9 at first): docs/didactic.md; experiments/results/pk.json.
The paper gives the initial logits, π_0, B, the rate of SGD, 1/|τ|, and one trace an update. It leaves open the
advantage of that one trace, the number of updates, and whether a* and `stop` are among the 100 actions of M's columns
(here a* is, and stop is not). Its first length, 15, does not follow from its initial logits: they give π(stop) = .14
and 6.9 tokens.
Sources: e3 App. A.1; "search" = found here by trying (LOG.md, 2026-11-24); other choices say so.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.seed = 0
    c.seeds = 5  # thin lines; each has its own M and noise
    c.budget = 100  # B_tr, e3 App. A
    c.points = 50  # logged per arm, exact values

    c.model = ConfigDict()
    c.model.actions = 100  # e3 App. A; a* is one of them
    c.model.span = 3.0  # M uniform in ±3, e3 App. A.1 …
    c.model.stop = 4.0  # … M(s, stop)
    c.model.best = -4.0  # … M(s, a*)

    # Drawn in this order. The first is the paper's; its outcome decides between "reproduced" and "mixed"
    c.order = ("as written", "large steps", "no noise", "small baseline", "GRPO of 8", "sum over tokens", "huge steps")
    c.settings = ConfigDict()
    # e3 App. A.1 to the letter, with A = 2r − 1 (Theorem J.3 sets A = −1 for a wrong action)
    c.settings["as written"] = setting(advantage="sign", lr=1e-2, updates=100_000)
    # What counts is lr x updates: this goes 240 times further, as noisy per trace as one trace at lr 1 (search)
    c.settings["large steps"] = setting(advantage="sign", lr=8.0, group=8, updates=30_000)
    # The same without noise: M moves along the exact expected gradient
    c.settings["no noise"] = setting(gradient="exact", advantage="sign", lr=100.0, updates=8_000)
    # A small constant baseline: length rises to the paper's 45 before the transition (search)
    c.settings["small baseline"] = setting(
        gradient="exact", advantage="constant", baseline=0.005, lr=100.0, updates=8_000
    )
    # GRPO's own advantage
    c.settings["GRPO of 8"] = setting(gradient="exact", advantage="group", group=8, lr=100.0, updates=4_000)
    # No 1/|τ|: the expected gradients of GRPO and mask are equal up to a factor
    c.settings["sum over tokens"] = setting(gradient="exact", advantage="sign", weighting="sum", lr=30.0, updates=4_000)
    # A rate at which single negative gradients throw the policy off
    c.settings["huge steps"] = setting(advantage="sign", lr=100.0, updates=4_000)

    c.checks = ConfigDict()
    c.checks.traces = 50_000  # sampled, to compare with the exact laws and gradients
    c.checks.policies = 20_000  # random policies for Theorem J.3
    return c


def setting(*, advantage: str, lr: float, updates: int, **other) -> ConfigDict:
    """Return one reading: the single trace and mean over tokens of e3 App. A.1 unless said."""
    paper = {"gradient": "sampled", "baseline": 0.0, "group": 1, "weighting": "mean"}
    return ConfigDict({**paper, **other, "advantage": advantage, "lr": lr, "updates": updates})
