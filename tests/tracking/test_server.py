"""Where MLflow is: URIs as users write them, and the command that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.errors import SpecError
from raycl.tracking.server import default_uri, mlflow_ui_command, resolve_uri, sqlite_uri


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert default_uri() == resolve_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("http://host:5000") == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert resolve_uri(None) == "http://server"
    assert resolve_uri("off") == "off"
    with pytest.raises(SpecError, match=r"sqlite:///<file>.*off"):
        resolve_uri("./mlruns")


@pytest.mark.parametrize(
    ("path", "quoted"),
    [("/a b/é#x/m.db", "/a b/é#x/m.db"), ("/a?b/m.db", "/a%3Fb/m.db"), ("/100%/a%20b/m.db", "/100%25/a%2520b/m.db")],
)
def test_a_path_is_quoted_where_a_uri_would_take_it_for_its_own(path: str, quoted: str) -> None:
    """And only there; what is quoted is not quoted again, and a query stays."""
    assert sqlite_uri(Path(path)) == f"sqlite:///{quoted}"
    assert resolve_uri(f"sqlite:///{quoted}") == f"sqlite:///{quoted}"
    assert resolve_uri(f"sqlite:///{quoted}?timeout=5") == f"sqlite:///{quoted}?timeout=5"


def test_ui_command() -> None:
    assert mlflow_ui_command("sqlite:////a b/mlflow.db") == "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    assert mlflow_ui_command("http://host:5000") == "python -m webbrowser http://host:5000"
