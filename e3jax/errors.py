"""The error that is meant for the person at the command line."""


class UserError(ValueError):
    """Something the person at the command line can mend; the message says what, its value, and how."""
