"""Errors that are shown to people as one line, without a traceback."""


class UserError(Exception):
    """Bad input or a wrong environment: one line that says what is wrong, where, and what would be right.

    The command line prints it and exits with 2.
    """


class ConfigError(UserError, ValueError):
    """A configuration (of a network, of a pipeline) that cannot be built or does not fit together."""
