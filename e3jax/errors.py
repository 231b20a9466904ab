"""The two ways in which a command ends early that are meant for the person at the command line; config checks."""


class UserError(ValueError):
    """Something the person at the command line can mend; the message says what, its value, and how."""


def need(holds: bool, field: str, value, allowed: str) -> None:
    """Raise UserError("config.field=value: allowed") unless it holds."""
    if not holds:
        raise UserError(f"config.{field}={value!r}: {allowed}")


class Stopped(Exception):
    """SIGTERM, and all is saved that can be: the same command goes on from there. Says where it stopped."""


def first_line(error: Exception) -> str:
    """What went wrong, without the stack of causes."""
    return (str(error).strip() or repr(error)).splitlines()[0]
