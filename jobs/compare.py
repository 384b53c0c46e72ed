"""Methods x orders x seeds: `python jobs/compare.py --method o_lora --method gain_lora --seed 0 --seed 1 --bounds`."""

from raycl.cli.compare import app

if __name__ == "__main__":
    app()
