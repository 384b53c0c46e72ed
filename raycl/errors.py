"""The errors a user can cause and mend. Entry points print them as one message and exit with code 2."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave cannot be used.

    The text names the field or file, the value, what is allowed and the next step.
    """


class SpecError(UserError):
    """A run spec has one or more problems; the text lists all of them."""


class DataError(UserError):
    """Task data is missing, empty or malformed."""


class StoreError(UserError):
    """A stage store, or a file in it, cannot be read or trusted."""


class SetupError(UserError):
    """Something this machine needs is missing (a package's data file, a reachable hub)."""
