"""Reckon what a stage would cost: chip-hours from a config, a mean response length, and the chip's peaks.

    python -m e3jax.tools.cost --config=configs/e3_math.py:stage=2 --chips=128 --length=8192
    python -m e3jax.tools.cost --responses=11680 --slots=256 --budget=32768 --chips=128 --length=12000
    python -m e3jax.tools.cost --config=configs/e3_math.py:stage=2 --chips=128 --simulate --quantiles=3000,8000,16384

With --simulate, a table of an RL step that waits for its longest response, or does not (tools/simulate.py), from the
10th, 50th and 90th percentile of response lengths, which metrics.jsonl has as length/p10, p50 and p90.

These numbers are reckoned, not measured. Per chip, with N responses of mean length L tokens, S slots on C chips,
bandwidth W and peak F:

    decode   N·L/S steps, each reads its weights and the live cache (prompt + L/2 tokens a slot); then the longest
             response alone: `budget` steps, each reads the weights                                        bytes / W
    update   tokens · FLOPs per token · passes: 3, 1 for remat, 1 for the old log-probs, 1 for the KL reference
             (supervised stages: 3 or 4)                                                                 / (C · F)

"At best" is this sum. "Expected" divides decoding by --reach_bandwidth and updates by --reach_flops, which are
assumptions. Left out are compiling, moving weights to the sampling layout, grading that is slower than sampling,
evaluations, checkpoints, and waiting for capacity. Prices are per chip-hour: yours may differ (launch/README.md).
"""

from typing import NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from e3jax.checkpoint.pretrained import model_config
from e3jax.errors import UserError
from e3jax.flags import run_tool
from e3jax.models.presets import ModelConfig, flops_per_token, num_params, preset
from e3jax.tools.chips import CHIPS, Chip
from e3jax.tools.simulate import WAYS, Lengths, Simulated, Work, simulate
from e3jax.train.chats import ChatStage
from e3jax.train.oxa import OxaStage
from e3jax.train.settings import resolve

PROMPT = 200  # tokens of a problem with its template, about
STEPS, OVER = 40, 4  # of a simulation; over-sampling draws a quarter more groups
SIMULATED = ("stage", "way", "s a step", "chip-hours", "slots busy", "tokens wasted", "trained / drawn length", "age")
COLUMNS = ("stage", "steps", "tokens a step", "s a step at best", "s a step expected", "hours", "chip-hours", "$")


class Step(NamedTuple):
    """Seconds of one step at the chip's peaks, and its response tokens."""

    tokens: float
    decode: float
    update: float


def decode_seconds(
    model: ModelConfig, chip: Chip, *, responses: int, length: float, budget: int, slots: int, chips: int, tensor: int
) -> float:
    """Return the seconds of sampling: memory traffic of bfloat16 weights and cache, over the bandwidth (see the top).

    >>> from e3jax.models.presets import preset
    >>> at = dict(length=1, budget=0, slots=512, chips=128, tensor=1)
    >>> round(1e3 * decode_seconds(preset("qwen3-1.7b"), CHIPS["v5e"], responses=512, **at), 1)  # weights, 200 tokens
    4.3
    """
    weights = 2 * num_params(model) / tensor
    cache = 4 * model.layers * model.kv_heads * model.head_width * (PROMPT + length / 2) * slots / chips
    return (responses * length / slots * (weights + cache) + budget * weights) / chip.bandwidth


def rl_step(c: ConfigDict, stage: str, chip: Chip, *, chips: int, length: float) -> Step:
    """Return what one step of a GRPO stage takes."""
    settings = resolve(c)
    g = settings.stage(stage)
    if g.budget == "auto":
        raise UserError(f"Eq. 2 has not chosen yet: give a number, --config.stages.{stage}.budget=256")
    if not c.sampler.slots:
        raise UserError("config.sampler.slots=0 follows from memory: give a number, --config.sampler.slots=512")
    model, n = model_config(settings.model.preset), g.responses
    decode = decode_seconds(
        model,
        chip,
        responses=n,
        length=length,
        budget=g.budget,
        slots=c.sampler.slots,
        chips=chips,
        tensor=c.sampler.tensor,
    )
    passes = 3 + (c.model.remat == "full") + (g.old_logp == "trainer") + bool(g.loss.kl_coef)
    work = n * (PROMPT + length) * flops_per_token(model, (PROMPT + length) / 2) * passes
    return Step(n * length, decode, work / chips / chip.flops)


def simulated_rows(f, config: ConfigDict, stage: str, chip: Chip) -> list[list[str]]:
    """Return a row of SIMULATED for each way to end a step of a GRPO stage; seconds are the expected ones."""
    settings = resolve(config)
    g, model, tensor = settings.stage(stage), model_config(settings.model.preset), config.sampler.tensor
    try:
        p10, p50, p90 = (float(x) for x in f.quantiles)
    except ValueError:
        p10 = p50 = p90 = 0.0
    if not 1 <= p10 <= p50 <= p90:
        raise UserError(f"--quantiles={','.join(f.quantiles)}: give three numbers of tokens, p10,p50,p90, in order")
    plain = rl_step(config, stage, chip, chips=f.chips, length=p50)  # refuses what is not known yet
    law = Lengths(p10, p50, p90, g.budget)
    lengths = law.draw(np.random.default_rng(config.seed), (STEPS + 2) * 2 * max(g.responses, config.sampler.slots))
    work = Work(g.prompts, g.group_size, config.sampler.slots, extra=-(-g.prompts // OVER), bound=g.carry_over or None)
    out = []
    for way in WAYS:
        s = simulate(lengths, work, way)
        update = plain.update * (PROMPT + s.trained_length) / (PROMPT + p50)
        expected = sampling_seconds(model, chip, s, chips=f.chips, tensor=tensor, reach=f) + update / f.reach_flops
        hours = config.stages[stage].steps * expected / 3600
        shares = f"{s.occupancy:.2f}", f"{s.wasted / s.tokens:.0%}", f"{s.trained_length / s.drawn_length:.3f}"
        out.append([stage, way, seconds(expected), f"{f.chips * hours:,.0f}", *shares, f"{s.staleness:.2f}"])
    return out


def sampling_seconds(model: ModelConfig, chip: Chip, s: Simulated, *, chips: int, tensor: int, reach) -> float:
    """Return the seconds of a simulated step's sampling: decoding as `decode_seconds`, and what is prefilled again."""
    a_token = 4 * model.layers * model.kv_heads * model.head_width / chips
    decode = (s.ticks * 2 * num_params(model) / tensor + (s.cached + s.tokens * PROMPT) * a_token) / chip.bandwidth
    prefill = s.prefilled * flops_per_token(model, s.drawn_length / 2) / chips / chip.flops
    return decode / reach.reach_bandwidth + prefill / reach.reach_flops


def supervised_step(c: ConfigDict, stage: str, chip: Chip, *, chips: int, length: float) -> Step:
    """Return what one step on examples takes: of OXA's two pools, E2C's rows, or full rows.

    Examples have `length` tokens on average, prompt included.
    """
    settings = resolve(c)
    s, model = settings.stage(stage), model_config(settings.model.preset)
    if isinstance(s, OxaStage):
        tokens = s.per_step * (1 + bool(s.suppress)) * length
    elif isinstance(s, ChatStage):
        tokens = s.per_step * length
    else:
        tokens = s.data.per_step * length if s.data else s.rows * s.row_length
    work = tokens * flops_per_token(model, length / 2) * (3 + (c.model.remat == "full"))
    return Step(tokens, 0.0, work / chips / chip.flops)


def seconds(x: float) -> str:
    """Return seconds as text: three digits below 1,000, whole numbers above."""
    return f"{x:.3g}" if x < 1000 else f"{x:,.0f}"


def row(name: str, steps: int, step: Step, *, chips: int, reach: tuple[float, float], price: float) -> list[str]:
    """Return COLUMNS of a table; hours, chip-hours and dollars are the expected ones."""
    expected = step.decode / reach[0] + step.update / reach[1]
    hours = steps * expected / 3600
    return [
        name,
        f"{steps:,}",
        f"{step.tokens / 1e6:,.2f} M",
        seconds(step.decode + step.update),
        seconds(expected),
        f"{hours:.1f}",
        f"{chips * hours:,.0f}",
        f"{chips * hours * price:,.0f}",
    ]


def rows_of(f, config: ConfigDict | None) -> list[list[str]]:
    """Return a row per stage of the config's order, or one for --responses."""
    if f.chip not in CHIPS:
        raise UserError(f"--chip={f.chip!r}: use one of {', '.join(CHIPS)}")
    if f.length is None:
        raise UserError("--length=NUMBER: say how many tokens a response or example has on average")
    chip, common = CHIPS[f.chip], dict(chips=f.chips, length=f.length)
    shown = dict(chips=f.chips, reach=(f.reach_bandwidth, f.reach_flops), price=f.price)
    if f.responses:
        decode = decode_seconds(
            preset(f.preset), chip, responses=f.responses, budget=f.budget, slots=f.slots, tensor=f.tensor, **common
        )
        return [row("responses", 1, Step(f.responses * f.length, decode, 0.0), **shown)]
    if config is None:
        raise UserError("--config=FILE or --responses=NUMBER: nothing else says what is to be done")
    out = []
    for stage in config.order:
        kind = config.stages[stage].kind
        step = (rl_step if kind == "grpo" else supervised_step)(config, stage, chip, **common)
        out.append(row(stage, config.stages[stage].steps, step, **shown))
    return out


def simulated(f, config: ConfigDict | None) -> list[list[str]]:
    """Return the rows of --simulate: of every GRPO stage in the config's order."""
    if f.chip not in CHIPS:
        raise UserError(f"--chip={f.chip!r}: use one of {', '.join(CHIPS)}")
    stages = [name for name in config.order if config.stages[name].kind == "grpo"] if config else []
    if not stages:
        raise UserError("--simulate wants a --config with a GRPO stage")
    return [row for stage in stages for row in simulated_rows(f, config, stage, CHIPS[f.chip])]


def main() -> None:
    """Print the table as markdown."""
    console, f = Console(width=200), flags.FLAGS
    columns, rows = (SIMULATED, simulated(f, f.config)) if f.simulate else (COLUMNS, rows_of(f, f.config))
    for line in (columns, ["---"] * len(columns), *rows):
        console.print("| " + " | ".join(line) + " |", markup=False, highlight=False)


def define(values: flags.FlagValues) -> None:
    """Define the command line's flags."""
    common = dict(flag_values=values)
    config_flags.DEFINE_config_file("config", None, "config of training stages", lock_config=True, **common)
    flags.DEFINE_integer("chips", None, "devices of the slice", lower_bound=1, required=True, **common)
    flags.DEFINE_float("length", None, "mean tokens of a response or example", 1.0, **common)
    flags.DEFINE_boolean("simulate", False, "how long steps wait for their longest response", **common)
    flags.DEFINE_list("quantiles", [], "with --simulate: p10,p50,p90 of response lengths in tokens", **common)
    flags.DEFINE_string("chip", "v5e", f"one of {', '.join(CHIPS)}", **common)
    flags.DEFINE_float("reach_bandwidth", 0.5, "share of the bandwidth that decoding reaches", 0.01, 1.0, **common)
    flags.DEFINE_float("reach_flops", 0.4, "share of the peak that updates reach", 0.01, 1.0, **common)
    flags.DEFINE_float("price", 1.2, "dollars of a chip-hour", 0.0, **common)
    flags.DEFINE_integer("responses", 0, "instead of a config: so many are drawn", 0, **common)
    flags.DEFINE_string("preset", "qwen3-1.7b", "with --responses: the model's shape", **common)
    flags.DEFINE_integer("slots", 256, "with --responses: responses at once", 1, **common)
    flags.DEFINE_integer("budget", 0, "with --responses: most tokens of one", 0, **common)
    flags.DEFINE_integer("tensor", 1, "with --responses: chips that one copy of the weights is split over", 1, **common)


if __name__ == "__main__":
    define(flags.FLAGS)
    run_tool(main)
