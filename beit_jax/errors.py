"""The one exception that a user is meant to see."""


class RequestError(Exception):
    """A request that cannot be carried out: says what is wrong, where, and what to change, in one or two lines.

    `main.py` and the tools print it on stderr without a traceback and exit with status 2.
    """
