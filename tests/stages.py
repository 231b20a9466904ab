"""Stages as a config makes them, for tests that train a step of one."""

from configs.common import base_config
from e3jax.sections import build, merged
from e3jax.train.grpo import GrpoStage
from e3jax.train.oxa import OxaStage
from e3jax.train.sft import SftStage

WHERE = dict(name="stage", index=0, first_step=0, first_problem=0, evaluated=False, steps=1, lr=1.0, warmup=0)


def grpo_stage(**changes) -> GrpoStage:
    """Return the defaults of configs/common.py with changes, sections field by field."""
    values = base_config().grpo.to_dict() | WHERE | dict(source=(3,), budget=20)
    return build(GrpoStage, merged(values, changes))


def sft_stage(**changes) -> SftStage:
    """Return a supervised stage without gaps between prompt and response."""
    values = base_config().sft.to_dict() | WHERE | dict(rows=2, row_length=12, position_gap=0, gap_rate=0.0)
    return build(SftStage, merged(values, changes))


def oxa_stage(**changes) -> OxaStage:
    """Return a stage on two files that need not exist."""
    values = WHERE | dict(promote="a.jsonl", suppress="b.jsonl", ul_weight=0.1, per_step=4, rows=8, row_length=48)
    return build(OxaStage, values | changes)
