"""Marks on the fields of spec models: what of a field is in the keys of stages and scores.

What carries no mark is in the keys as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NotInKey:
    """Marks a field of a spec model that has no effect of its own on results, so that it is left out of every key.

    What carries no mark is in the keys: a new field can be left out only on purpose.
    """

    why: str


@dataclass(frozen=True)
class InKeyUnlessDefault:
    """Marks a field that is in the keys only where it differs from its default: older keys were made without it."""


@dataclass(frozen=True)
class Meaning:
    """Marks a field whose values mean something else since `version`, all but `except_for`; keys hold it with the value."""

    version: int
    except_for: Any

    def keyed(self, value: Any) -> Any:
        """The value as it stands in a key."""
        return value if value == self.except_for else {"value": value, "version": self.version}


@dataclass(frozen=True)
class PerStage:
    """Marks a field that takes one value, or a list with one value per stage."""
