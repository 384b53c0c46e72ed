"""Where DeepSpeed still builds an op, on GPUs: with the interpreter's own programs, and a failed build as one line."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager

from raycl.errors import SetupError, first_line

BUILD = re.compile(r"JIT load|building extension|ninja is required|CUDA_HOME|compile CUDA op", re.IGNORECASE)
"""What DeepSpeed's and torch's own errors say when an op could not be built; they share no class."""


def own_programs_first() -> None:
    """Put the folder of the interpreter's programs first on PATH, so that builds find its ninja and always the same one.

    torch looks for ninja on PATH, where an environment that is not activated is missing; and it builds an op anew
    whenever another ninja than the last one does it.
    """
    own = sysconfig.get_path("scripts")
    others = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder and folder != own]
    os.environ["PATH"] = os.pathsep.join([own, *others])


@contextmanager
def builds_reported() -> Iterator[None]:
    """Turn the failure of a build inside into a SetupError, which ends the run and is never tried again."""
    try:
        yield
    except Exception as error:
        if not BUILD.search(str(error)):
            raise
        raise SetupError(
            f"DeepSpeed could not build an op that it needs here ({first_line(error)}). Install a C++ compiler and the CUDA "
            "toolkit of torch's version (`python -c 'import torch; print(torch.version.cuda)'`), with CUDA_HOME naming its "
            "folder, and run the same command again; or train on CPU: CUDA_VISIBLE_DEVICES= in front of the command"
        ) from error
