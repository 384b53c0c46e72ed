"""The shared matrix of tests for methods that live outside of raycl, by one import in a test file of pytest's:

    from raycl.testing import method_matrix

    TestEma = method_matrix("ema:Ema", {"rank": 4}, trains="AB")

raycl's own methods are tested by the same checks. It needs pytest, which raycl itself does not.
"""

from __future__ import annotations

import pytest

# A failing assertion then shows its values, as one in a test file does.
pytest.register_assert_rewrite(*(f"raycl.testing.{name}" for name in ("matrix", "own", "probes", "ranks")))

from raycl.testing.own import method_matrix  # noqa: E402

__all__ = ["method_matrix"]
