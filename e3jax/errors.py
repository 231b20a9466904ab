"""The two ways in which a command ends early that are meant for the person at the command line."""


class UserError(ValueError):
    """Something the person at the command line can mend; the message says what, its value, and how."""


class Stopped(Exception):
    """SIGTERM, and all is saved that can be: the same command goes on from there. Says where it stopped."""


def first_line(error: Exception) -> str:
    """What went wrong, without the stack of causes."""
    return (str(error).strip() or repr(error)).splitlines()[0]
