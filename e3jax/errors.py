"""Errors shown to the user: bad input and SIGTERM; and checks of a config, whose errors are shown all at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SEEDS = 1 << 31  # seeds are below this


class UserError(ValueError):
    """A mistake that the user can correct. The message says what is wrong, the value, and what to do."""


REFUSED: ContextVar[dict[str, str] | None] = ContextVar("refused", default=None)  # field -> message; None: raise
SECTION: ContextVar[Callable[[str], str]] = ContextVar("section", default=str)  # field of a section -> dotted path


def need(holds: bool, field: str, value, allowed: str) -> bool:
    """Refuse a field unless `holds`, with the message "config.field=value: allowed"; return whether it holds.

    Raises UserError, or notes the message within `all_errors`. A field is refused only once, because later checks of it
    may only repeat what is wrong. Within `section` the field is one of that section's.
    """
    if holds:
        return True
    field = dotted_path(field)
    message, refused = f"config.{field}={value!r}: {allowed}", REFUSED.get()
    if refused is None:
        raise UserError(message)
    refused.setdefault(field, message)
    return False


@contextmanager
def all_errors() -> Iterator[None]:
    """Let checks go on after `need` refuses within a block or a decorated function; raise one UserError at its end.

    Blocks nest, and the outermost raises. An exception ends its own block only: a UserError becomes one more message;
    another exception is dropped if something was refused before, because it may follow from that.
    """
    outer = REFUSED.get()
    refused = {} if outer is None else outer
    token = REFUSED.set(refused)
    try:
        yield
    except UserError as error:
        refused.setdefault(str(error), str(error))
    except Exception:
        if not refused:
            raise
    finally:
        REFUSED.reset(token)
    if outer is None and refused:
        raise UserError("\n  ".join(refused.values()))  # the form of list that flags.stop keeps


@contextmanager
def section(path: Callable[[str], str]) -> Iterator[None]:
    """Let `need` take fields of one section of a config within the block; `path` turns a field into its dotted path.

    >>> with section("sampler.{}".format):
    ...     need(False, "slots", 0, "use 1 or more")
    Traceback (most recent call last):
    e3jax.errors.UserError: config.sampler.slots=0: use 1 or more
    """
    outer = SECTION.get()
    token = SECTION.set(lambda field: outer(path(field)))
    try:
        yield
    finally:
        SECTION.reset(token)


def need_at_least_one(settings, *names: str) -> None:
    """Refuse fields of a dataclass that are below 1."""
    for name in names:
        need(getattr(settings, name) >= 1, name, getattr(settings, name), "use 1 or more")


def need_choice(settings, name: str, allowed: tuple) -> bool:
    """Refuse a field of a dataclass that is none of `allowed`; return whether it is one."""
    value = getattr(settings, name)
    return need(value in allowed, name, value, f"use one of {', '.join(map(repr, allowed))}")


def are_counts(values) -> bool:
    """Return whether these are whole numbers of 1 and more, at least one of them."""
    return len(values) > 0 and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in values)


def need_counts(field: str, values) -> bool:
    """Refuse a field that does not hold whole numbers of 1 and more; return whether it does."""
    return need(are_counts(values), field, tuple(values), "name at least one, each 1 or more")


def dotted_path(field: str) -> str:
    """Return the dotted path of a field of the section that is checked."""
    return SECTION.get()(field)


def need_seed(seed, field: str = "seed") -> None:
    """Raise UserError unless `seed` is a whole number of 31 bits: JAX keeps 32 and drops the others silently."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    need(whole and 0 <= seed < SEEDS, field, seed, f"use a whole number from 0 to {SEEDS - 1}")


class Stopped(Exception):
    """SIGTERM came, and everything that can be saved is saved; the message says where the same command goes on."""


def first_line(error: Exception) -> str:
    """Return what went wrong, without the stack of causes."""
    return (str(error).strip() or repr(error)).splitlines()[0]
