"""Fig. 10 of e3's App. A: negative gradients in the bigram p^k model, in seven readings of its text.

    python -m e3jax.didactic.run --config=configs/experiments/pk.py --workdir=runs/pk

Hardware and time: 2 quiet CPU cores, 2 min 31 s (183 s of processor time; once, 2026-11-24).
Expected (5 seeds, GRPO / mask; length is 6.9 at first): docs/didactic.md; experiments/results/pk.json.
The paper gives the initial logits, π_0, B, SGD's rate and 1/|τ|, one trace an update. It leaves open: the advantage of
that one trace, how many updates, and whether a* and `stop` are among the 100 actions of M's columns (here: a* is, stop
is not). Its first length, 15, does not follow from its initial logits: they give π(stop) = .14 and 6.9 tokens.
Sources: App. A.1; LOG = found here by search (LOG.md); the rest says so.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.seed = 0
    c.seeds = 5  # thin lines; each has its own M and noise
    c.budget = 100  # B_tr, App. A
    c.points = 50  # logged per arm, exact values

    c.model = ConfigDict()
    c.model.actions = 100  # App. A; a* is one of them
    c.model.span = 3.0  # M uniform in ±3, App. A.1 …
    c.model.stop = 4.0  # … M(s, stop)
    c.model.best = -4.0  # … M(s, a*)

    # drawn in this order; the first is the paper's, whose outcome decides between "reproduced" and "mixed"
    c.order = ("as written", "large steps", "no noise", "small baseline", "GRPO of 8", "sum over tokens", "huge steps")
    c.settings = ConfigDict()
    # App. A.1 to the letter, with A = 2r − 1 (Theorem J.3 sets A = −1 for a wrong action)
    c.settings["as written"] = setting(advantage="sign", lr=1e-2, updates=100_000)
    # lr x updates is what counts: 240 times further. As noisy per trace as one trace at lr 1 (LOG)
    c.settings["large steps"] = setting(advantage="sign", lr=8.0, group=8, updates=30_000)
    # … and without noise: M moves along the exact expected gradient
    c.settings["no noise"] = setting(gradient="exact", advantage="sign", lr=100.0, updates=8_000)
    # a small constant baseline: rises to the paper's 45 before the transition (LOG)
    c.settings["small baseline"] = setting(
        gradient="exact", advantage="constant", baseline=0.005, lr=100.0, updates=8_000
    )
    # GRPO's own advantage
    c.settings["GRPO of 8"] = setting(gradient="exact", advantage="group", group=8, lr=100.0, updates=4_000)
    # no 1/|τ|: the expected gradients of GRPO and mask are the same up to a factor
    c.settings["sum over tokens"] = setting(gradient="exact", advantage="sign", weighting="sum", lr=30.0, updates=4_000)
    # a rate at which single negative gradients throw the policy about
    c.settings["huge steps"] = setting(advantage="sign", lr=100.0, updates=4_000)

    c.checks = ConfigDict()
    c.checks.traces = 50_000  # sampled, against the exact laws and gradients
    c.checks.policies = 20_000  # of Theorem J.3
    return c


def setting(*, advantage: str, lr: float, updates: int, **other) -> ConfigDict:
    """One reading: App. A.1's single trace and mean over tokens unless said."""
    paper = {"gradient": "sampled", "baseline": 0.0, "group": 1, "weighting": "mean"}
    return ConfigDict({**paper, **other, "advantage": advantage, "lr": lr, "updates": updates})
