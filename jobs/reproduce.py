"""A published table: `python jobs/reproduce.py am_lora/table1`, the same as `raycl reproduce ...`."""

from raycl.cli.app import main

if __name__ == "__main__":
    main("reproduce")
