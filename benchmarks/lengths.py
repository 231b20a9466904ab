"""The recorded workload that every speed benchmark here runs: prompts of 20 to 100 tokens, responses of skewed length.

    python benchmarks/lengths.py        # writes lengths.json anew: the same numbers

A response's length is a share of the budget: log-normal, sigma .9, median .216, cut at 1, so .30 on average and some at
the limit. Every 64 responses (8 prompts of 8) hold the 64 quantiles (i + 1/2) / 64 in a random order, so that any
number of whole blocks has the same distribution. Nobody may sort by these lengths before they are sampled.

    prompts, length_pg = workload(prompts=8, samples=8, budget=1024, vocabulary=8192)
"""

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np

FILE = Path(__file__).with_name("lengths.json")
BLOCK, BLOCKS, SAMPLES = 64, 8, 8
MEDIAN, SIGMA = 0.216, 0.9


def make() -> dict:
    """The record: `prompt` lengths in tokens, `share` of the budget of every response, prompt-major."""
    rng = np.random.default_rng(2026)
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / BLOCK) for i in range(BLOCK)])
    share = np.minimum(MEDIAN * np.exp(SIGMA * normal), 1.0)
    return {
        "prompt": rng.integers(20, 101, BLOCKS * BLOCK // SAMPLES).tolist(),
        "share": np.concatenate([rng.permutation(share) for _ in range(BLOCKS)]).round(4).tolist(),
    }


def workload(*, prompts: int, samples: int, budget: int, vocabulary: int) -> tuple[list[list[int]], np.ndarray]:
    """Prompts of random tokens (2 and above: 0 pads, 1 ends), and response lengths [P, G] in tokens."""
    record = json.loads(FILE.read_text())
    if prompts > len(record["prompt"]) or prompts * samples > len(record["share"]):
        raise SystemExit(f"{prompts} prompts of {samples} samples are not recorded: at most {len(record['prompt'])}")
    rng = np.random.default_rng(7)
    tokens = [rng.integers(2, vocabulary, n).tolist() for n in record["prompt"][:prompts]]
    share = np.array(record["share"][: prompts * samples]).reshape(prompts, samples)
    return tokens, np.maximum(np.rint(share * budget), 1).astype(np.int32)


def main() -> None:
    FILE.write_text(json.dumps(make()) + "\n")
    for count in (2, 4, 8, 16):
        _, length_pg = workload(prompts=count, samples=8, budget=1024, vocabulary=8192)
        print(f"{count} prompts: mean {length_pg.mean():.0f} of 1024, longest {length_pg.max()}")


if __name__ == "__main__":
    main()
