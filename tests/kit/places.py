"""Where the checkout and the optional benchmark data are."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
BENCHMARK = Path(os.environ.get("RAYCL_TEST_BENCHMARK", ROOT.parent / "shared" / "benchmark")).resolve()
"""The real benchmark data; tests that need them skip where they are absent."""
