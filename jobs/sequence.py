"""One sequence: `python jobs/sequence.py --order 5`. All logic is in the library."""

from raycl.cli.run import app

if __name__ == "__main__":
    app()
