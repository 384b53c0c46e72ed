"""Tests of raycl; `tests.kit` holds what they share."""

import sys

# Where compiled modules may not be kept, every process of the tests compiles torch and the others anew: 25 s each.
sys.dont_write_bytecode = False
