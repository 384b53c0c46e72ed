"""Tests of raycl; `tests.kit` holds what they share."""
