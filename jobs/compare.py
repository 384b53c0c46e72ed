"""Methods x orders x seeds: `python jobs/compare.py --method o_lora --bounds`, the same as `raycl compare ...`."""

from raycl.cli.app import main

if __name__ == "__main__":
    main("compare")
