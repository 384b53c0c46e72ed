"""Multiply-adds of made-up models, small enough to be added up by hand."""

from __future__ import annotations

from raycl.models.counts import Batch, Products

DECODER = Products(100, 0, 20, 2, 0, 0, 10, 0, 3, 0)
BOTH = Products(100, 70, 20, 2, 3, 4, 10, 6, 3, 2)
BATCH = Batch(2, 5, 3)
