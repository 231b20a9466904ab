"""The two ways in which a command ends early that are meant for the person at the command line; config checks."""

SEEDS = 1 << 31  # seeds are smaller than this


class UserError(ValueError):
    """Something the person at the command line can mend; the message says what, its value, and how."""


def need(holds: bool, field: str, value, allowed: str) -> None:
    """Raise UserError("config.field=value: allowed") unless it holds."""
    if not holds:
        raise UserError(f"config.{field}={value!r}: {allowed}")


def need_seed(seed, field: str = "seed") -> None:
    """Raise UserError unless `seed` is a whole number of 31 bits: JAX keeps 32 and drops the others silently."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    need(whole and 0 <= seed < SEEDS, field, seed, f"use a whole number from 0 to {SEEDS - 1}")


class Stopped(Exception):
    """SIGTERM, and all is saved that can be: the same command goes on from there. Says where it stopped."""


def first_line(error: Exception) -> str:
    """What went wrong, without the stack of causes."""
    return (str(error).strip() or repr(error)).splitlines()[0]
