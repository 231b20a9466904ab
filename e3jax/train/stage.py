"""What the stages of every kind have in common."""

from dataclasses import dataclass

from e3jax.errors import need


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of `config.order`: where it stands in the run, and its optimiser's schedule."""

    name: str
    index: int  # in the order: names its noise
    first_step: int  # steps of the stages before it
    first_problem: int  # of an RL stage's source: no stage sees a problem of an earlier one
    evaluated: bool  # accuracy and pass@k are measured when it ends
    steps: int
    lr: float
    warmup: int  # steps of linear warm-up; 0: none

    def __post_init__(self):
        need(self.steps >= 1, "steps", self.steps, "use 1 or more")
        need(self.lr > 0, "lr", self.lr, "must be above 0")
        need(self.warmup >= 0, "warmup", self.warmup, "use 0 (none) or more")
