"""Secrets come from the environment alone, and stay there: in no file that a run leaves, and in no message."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.errors import UserError, has_password, redacted
from tests.kit.cli import invoke
from tests.kit.runs import MakeFlags

SECRET = "s3cr3t-Zk81mQx7"
VARIABLES = (
    "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN",
    "OPENAI_API_KEY",
)  # fmt: skip


def test_a_run_leaves_no_secret_of_its_environment(
    flags: MakeFlags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the store, the output folder, the page, MLflow's database and artifacts, nor on the terminal."""
    for name in VARIABLES:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    arguments = flags(tmp_path / "store", order="roget", workers=0, eval__forward="false")
    done = invoke("run", [*arguments, "--tracking", tracking])
    assert done.code == 0, done.output[-2000:]
    assert SECRET not in done.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"manifest.json", "report.html", "spec.json", "mlflow.db"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_messages_leave_passwords_out() -> None:
    """Of URIs, and tokens of well-known forms, wherever they come from."""
    said = str(UserError(f"cannot read s3://me:{SECRET}@host/x with hf_{'a' * 30} or sk-{'b' * 30}"))
    assert said == "cannot read s3://***@host/x with *** or ***"
    assert redacted("http://host:80/a@b, me@host, c://d/e:f@g") == "http://host:80/a@b, me@host, c://d/e:f@g"


@pytest.mark.parametrize(
    ("uri", "held"),
    [("s3://a:b@c/d", True), ("https://a:@c", True), ("s3://c/d", False), ("http://c:80/d", False), ("/a:b@c", False)],
)
def test_where_a_password_is(uri: str, held: bool) -> None:
    """Between a colon and an @, before the first slash."""
    assert has_password(uri) is held
