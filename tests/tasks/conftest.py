"""The real benchmark data, where present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """The folder with the real benchmark data, or a skip."""
    default = Path(__file__).resolve().parents[2] / ".." / "shared" / "benchmark"
    folder = Path(os.environ.get("RAYCL_TEST_BENCHMARK", default)).resolve()
    if not (folder / "manifest.json").is_file():
        pytest.skip("no benchmark data: set RAYCL_TEST_BENCHMARK to a folder in the benchmark layout")
    return folder
