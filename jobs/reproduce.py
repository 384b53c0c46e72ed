"""A published table: `python jobs/reproduce.py am_lora/table1 --scale smoke`. All logic is in the library."""

from raycl.cli.reproduce import app

if __name__ == "__main__":
    app()
