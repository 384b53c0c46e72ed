"""One sequence: `python jobs/sequence.py --order 5`, the same as `raycl run --order 5`."""

from raycl.cli.app import main

if __name__ == "__main__":
    main("run")
