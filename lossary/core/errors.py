"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the input that the user can mend.

    The message is one or two lines: what came, what was wanted, and how to mend it. The command line prints it
    without a traceback and exits with code 2.
    """
