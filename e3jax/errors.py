"""The error that is meant for the person at the command line."""


class UserError(ValueError):
    """Something the person at the command line can mend; the message says what, its value, and how."""


def first_line(error: Exception) -> str:
    """What went wrong, without the stack of causes."""
    return (str(error).strip() or repr(error)).splitlines()[0]
