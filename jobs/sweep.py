"""A sweep: `python jobs/sweep.py --space tune_spaces/gain_gate.py --order 1 --trials 20`. All logic is in the library."""

from raycl.cli.sweep import app

if __name__ == "__main__":
    app()
