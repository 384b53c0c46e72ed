"""DeepSpeed's ops: whose programs build them, and how a failed build is told."""

from __future__ import annotations

import os
import sysconfig

import pytest

from raycl.errors import SetupError
from raycl.train.ops import builds_reported, own_programs_first

OWN = sysconfig.get_path("scripts")


@pytest.mark.parametrize("path", ["", "/usr/bin:/bin", f"/usr/bin:{OWN}:/bin", OWN])
def test_the_interpreters_programs_come_first_and_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ninja is found before a system's; the others stay in their order."""
    monkeypatch.setenv("PATH", path)
    for _ in range(2):
        own_programs_first()
        others = [folder for folder in path.split(":") if folder not in ("", OWN)]
        assert os.environ["PATH"].split(os.pathsep) == [OWN, *others]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Unable to JIT load the fused_adam op due to ninja not being installed."),
        RuntimeError("Error building extension 'fused_adam': [1/2] c++ ...\nmore"),
        RuntimeError("Ninja is required to load C++ extensions (pip install ninja to get it)"),
        OSError("CUDA_HOME environment variable is not set. Please set it to your CUDA install root."),
        Exception("CUDA_HOME does not exist, unable to compile CUDA op(s)"),
    ],
)
def test_a_failed_build_is_one_line_that_says_what_to_do(error: Exception) -> None:
    """A SetupError is the user's to mend: it ends the run and no group is started again for it."""
    with pytest.raises(SetupError) as caught, builds_reported():
        raise error
    text = str(caught.value)
    assert str(error).splitlines()[0] in text
    assert "compiler" in text and "CUDA_VISIBLE_DEVICES=" in text
    assert "\n" not in text


def test_any_other_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"), builds_reported():
        raise RuntimeError("shapes do not match")
