"""One bad input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bad:
    """A command that must be refused in words.

    In `arguments` and `words` stand {tmp}, a folder of the test's own in which `files` lie, and {data}, {model}, {store},
    {home}.
    """

    verb: str
    arguments: Sequence[str]
    words: Sequence[str]
    """Parts of the message."""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How pytest calls it."""
        said = " ".join([self.verb, *self.arguments, *self.files])
        return "".join(one if one.isascii() and one.isalnum() else "-" for one in said)[:70]


RUN = (*("--order", "sst2", "--data", "{data}", "--model", "{model}", "--store", "{store}"),)
"""A run that nothing is wrong with."""
HERE = ("--workers", "0", "--preset", "laptop", "--output", "{tmp}/out", "--tracking", "off")


def run(*arguments: str, words: Sequence[str], **files: str | bytes) -> Bad:
    """`raycl run` with something wrong; what is given last counts."""
    return Bad("run", [*RUN, *HERE, *arguments], words, files)


def settings(*fields: str, words: Sequence[str]) -> Bad:
    """`raycl run` with --set."""
    return run(*(part for one in fields for part in ("--set", one)), words=words)
