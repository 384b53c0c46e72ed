"""A sweep: `python jobs/sweep.py --space tune_spaces/gain_gate.py --order 1`, the same as `raycl sweep ...`."""

from raycl.cli.app import main

if __name__ == "__main__":
    main("sweep")
