"""Sequences in this process that draw no figures: these take most of the time of tiny ones.

Figures and pages are looked at in tests/report/ and tests/sequence/test_sequence.py, and made for methods of every kind in
tests/sequence/test_every_method_runs.py and by the commands of the documentation's pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from raycl.report import files


@contextmanager
def no_figures() -> Iterator[None]:
    """As on a machine without matplotlib."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "DRAWS", False)
        yield
