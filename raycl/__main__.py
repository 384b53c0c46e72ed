"""`python -m raycl`: the same as the command `raycl`."""

from raycl.cli.app import main

if __name__ == "__main__":
    main()
