"""`python -m raycl`: what can be asked without running anything."""

from raycl.cli.run import tools

if __name__ == "__main__":
    tools(prog_name="python -m raycl")
