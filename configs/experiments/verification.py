"""Is a verification-generation gap needed? Train on Countdown, and on products without (MULT) and with checks (MULT-V).

    python -m e3jax.experiments.run --config=configs/experiments/verification.py --workdir=runs/experiments/verification

e3 Fig. 4, 16. Hardware and time: 3 seeds, 42 minutes of runs in all, each on one core, without Countdown's bases.
Expected (2026-11-24, docs/experiments.md, experiments/results/verification.json): mixed, 5 of 7 statements hold. Means:
                 countdown-48  -96   -192  mult-24  -48   -96   -mask  mult-v-24  -48   -96   -mask
    length            43        78    131    11.6   14.1  15.6   10.4     18.6    22.5  27.0   25.3
    checks           3.0       5.5    9.8                                 1.24    1.70  2.19   1.98
    at 48 tokens     3.0       3.0    3.3    22.7   21.4  21.5   23.0     20.3    19.1  18.9   20.6  %
    at 384          17.7      21.6   21.7    22.7   21.5  21.9   23.0     23.8    25.3  23.4   24.3  %
Accuracy is that on 4 numbers (base 6.1 % at 384) and on products (bases 12.0 and 12.6). Products are learned by heart:
the reward in training is 56 % for mult and 86 % for mult-v. Values: budgets are a quarter, one and two times what a
base response of a few attempts needs.
Size lm (configs/experiments/common.py): not run, needs a GPU. Countdown at 256, 512 and 1,024 tokens; products of 3 and
2 digits in long multiplication at 128, 256 and 512.
"""

from configs.experiments.common import (
    HARD,
    LM_SETTING,
    accuracy,
    arm,
    at,
    countdown,
    curve,
    experiment,
    in_text,
    measure,
    over_budgets,
    product_set,
    products,
    rl,
    shrunk,
    statement,
    training,
    weights,
)

BUDGETS = {"countdown": (48, 96, 192), "mult": (24, 48, 96), "mult-v": (24, 48, 96)}


def get_config(size: str = "cpu"):
    c = experiment("verification", size, text=True)
    c.paper = "Fig. 4, 16 (§4, App. G.2)"
    c.claim = (
        "Where the base model verifies better than it generates (Countdown, MULT-V), RL lengthens responses, a longer "
        "training budget helps, and accuracy grows beyond it; without the gap (MULT) lengths and extrapolation stay "
        "subdued and the budget does not matter. Negative gradients add checks only where there is a gap."
    )
    c.setting = (
        "MULT and MULT-V are products of 2 digits and 1 in words; both base models guess alike, MULT-V's casts out "
        "nines and gives a verdict. The paper: 5 x 5 digits, a 3B model, MULT-V tuned on traces of R1-Distill-32B. "
        "Countdown trains on 3 and 4 numbers (the paper: 3 to 6)."
    )
    if in_text(size):
        c.setting = f"{LM_SETTING} MULT and MULT-V are long multiplications in text, MULT-V casts out nines."
    budgets_of = {base: tuple(at(size, b) for b in budgets) for base, budgets in BUDGETS.items()}
    c.bases.countdown = countdown(size)
    c.bases.mult = products(size, verify=False)
    c.bases["mult-v"] = products(size, verify=True)
    for base, budgets in budgets_of.items():
        data = {"numbers": (3, 4)} if base == "countdown" else {}
        for b in budgets:
            c.arms[f"{base}-{b}"] = arm(f"{base}, budget {b}", after=base, **rl(budget=b, steps=50, **data))
    low, middle, high = budgets_of["mult"]
    for base in ("mult", "mult-v"):  # e3 Fig. 16, at the longest budget
        stage, of = rl(budget=high, steps=50), weights(gradients="positive")
        c.arms[f"{base}-mask"] = arm(f"{base}, GRPOMask, budget {high}", after=base, **stage, **of)
    product, far = product_set(size), at(size, 384)
    c.measures.update(training("length", "rise", "attempts", "checks", "reward"))
    c.measures.update(accuracy(product, middle, far) | accuracy(HARD, at(size, 48), far))
    gained = f"accuracy gained from {middle} to {far} tokens"
    c.measures["gain"] = measure(gained, "gain", product, middle, far, percent=True)
    long = f"{product} at {far}"
    v, none = (lambda b: (f"mult-v-{b}",)), (lambda b: (f"mult-{b}",))
    short, longer = (f"countdown-{b}" for b in budgets_of["countdown"][::2])
    c.rule = (
        statement("lengths rise more with checks", "rise", plus=v(high), minus=none(high)),
        statement(
            f"accuracy beyond {middle} tokens gains more with checks", "gain", plus=v(middle), minus=none(middle)
        ),
        statement("without checks it gains nothing", "gain", plus=none(middle), kind="within", margin=0.02),
        statement("a longer training budget helps with checks", long, plus=v(high), minus=v(low)),
        statement("and does not matter without", long, plus=none(high), minus=none(low), kind="within", margin=0.05),
        statement("it helps on Countdown", f"{HARD} at {far}", plus=(longer,), minus=(short,)),
        statement("negative gradients add checks", "checks", plus=v(high), minus=("mult-v-mask",)),
    )
    three = tuple(f"{base}-{budgets[1]}" for base, budgets in budgets_of.items())
    four = (*v(high), "mult-v-mask", *none(high), "mult-mask")
    of_products = ("mult", "mult-v", *none(low), *none(high), *v(low), *v(high))
    groups = {base: tuple((b, f"{base}-{b}") for b in budgets) for base, budgets in budgets_of.items()}
    trained = dict(kind="against", xlabel="training budget (tokens)", groups=groups)
    c.figures = (
        {**trained, "title": "Reward by training budget", "measure": "reward", "percent": True, "ylabel": ""},
        {**trained, "title": "Length by training budget", "measure": "length", "percent": False, "ylabel": "tokens"},
        over_budgets(product, of_products),
        over_budgets(HARD, ("countdown", *(f"countdown-{b}" for b in budgets_of["countdown"]))),
        curve("Response length at the middle budget", "length/mean", "tokens", three),
        curve("Checks, with and without negative gradients", "explore/verifications", "", four),
        curve("Reward, with and without negative gradients", "reward/mean", "", four, percent=True),
    )
    return shrunk(c, size)
