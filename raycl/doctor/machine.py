"""The machine itself: Python, torch and what it multiplies natively, GPUs, the compiler."""

from __future__ import annotations

import platform
import shutil
import sysconfig

from raycl.doctor.finding import Finding, Places

OLDEST_PYTHON = (3, 11)
COMPILERS = ("c++", "g++", "clang++")


def python(places: Places) -> Finding:
    """Whether this Python is new enough."""
    found = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) >= OLDEST_PYTHON:
        return Finding("python", "ok", found)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding("python", "failed", f"{found}, older than {oldest}", f"make setup PYTHON=python{oldest}, or newer")


def torch(places: Places) -> Finding:
    """torch's version, whether bf16 is multiplied natively here, and what `model.precision: auto` becomes."""
    try:
        from raycl.models.precision import accelerator, native_precision, torch_version
    except ImportError as error:
        return Finding("torch", "failed", f"cannot be imported ({error})", "install torch 2.15 or newer: `make setup`")
    precision = native_precision()
    native = "native" if precision == "bf16" else "not native, several times slower than fp32"
    return Finding(
        "torch", "ok", f"{torch_version()}; {accelerator()}; bf16 is {native}; model.precision auto = {precision}"
    )


def gpus(places: Places) -> Finding:
    """The GPUs of this machine with their memory."""
    from raycl.models.precision import gpus as of_this_machine

    found = [f"{gpu.name}, {gpu.memory / 2**30:.0f} GiB" for gpu in of_this_machine()]
    return Finding("gpus", "ok", "; ".join(found) or "none: a run here computes on the CPU")


def compiler(places: Places) -> Finding:
    """A C++ compiler and ninja: DeepSpeed builds an op with them where a GPU run needs one; on a CPU nothing is built."""
    from raycl.models.precision import gpus as of_this_machine

    scripts = sysconfig.get_path("scripts")  # where a build looks first: raycl/train/ops.py
    ninja = shutil.which("ninja") or shutil.which("ninja", path=scripts)
    tools = {"a C++ compiler": next(filter(None, map(shutil.which, COMPILERS)), None), "ninja": ninja}
    have = ", ".join(path for path in tools.values() if path) or "none"
    if not of_this_machine():
        return Finding("compiler", "ok", f"not needed: on a CPU no op is built (found: {have})")
    if missing := [name for name, path in tools.items() if path is None]:
        return Finding(
            "compiler",
            "warning",
            f"{' and '.join(missing)} not found on PATH, and DeepSpeed may have to build an op for a GPU",
            "install them: on Debian or Ubuntu `apt-get install g++ ninja-build`; or train.engine=torch at "
            "train.zero_stage=0, which builds nothing",
        )
    return Finding("compiler", "ok", have)
