"""MLflow's side: where it records, a client, an experiment, and which of its failures may pass.

MLflow is imported only when a client is made, because the import takes seconds.
"""

from __future__ import annotations

import logging
import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from raycl.errors import SpecError
from raycl.files import home

log = logging.getLogger(__name__)
LOCK_SECONDS = 60.0
"""Longest wait for another process that makes or migrates the same SQLite database."""
TRANSIENT = frozenset({"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"})
"""MLflow's error codes for what may pass by itself: no connection, a locked database, too many requests."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Lets the MLflow UI open an experiment on its training runs."""
ENVIRONMENT = {
    # MLflow's own retries take minutes; the outbox retries instead, without holding up the training.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    # A training run sends nothing to third parties unless its user says so.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set before MLflow is imported, where the user has not set them."""


def default_uri() -> str:
    """The tracking URI when none is given: MLFLOW_TRACKING_URI, else a database in RAYCL_HOME (~/.raycl)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(home() / "mlflow.db")


def sqlite_uri(database: Path, query: str = "") -> str:
    """The URI of a SQLite database at an absolute path; what a URI would take for its own (`?`, `%`) is quoted.

    `query` is what stands behind the path in a URI, without its question mark.
    """
    path = str(database).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" + (f"?{query}" if query else "")


def resolve_uri(uri: str | None) -> str:
    """`uri` (none = `default_uri`) with a SQLite path made absolute, so that it means the same in every folder.

    Raises SpecError for one that is no URI.
    """
    uri = uri or default_uri()
    if "://" not in uri and uri != "databricks":
        raise SpecError(
            f"tracking URI {uri!r}: allowed are sqlite:///<file>, http(s)://<host>:<port>, and MLflow's others"
        )
    database = _sqlite_file(uri)
    return sqlite_uri(database, uri.partition("?")[2]) if database else uri


def mlflow_ui_command(uri: str) -> str:
    """The command line that opens the runs recorded under `uri` in a browser."""
    if urlsplit(uri).scheme in ("http", "https"):
        return f"python -m webbrowser {shlex.quote(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """A client and the experiment's id; a missing database or experiment is made, by one process at a time."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    database = _sqlite_file(uri)
    if database:
        database.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that migrate one SQLite file at once fail with "duplicate column".
    with FileLock(f"{database}.lock", timeout=LOCK_SECONDS) if database else nullcontext():
        client = MlflowClient(tracking_uri=uri)
        folder = (database.parent / "mlartifacts").as_uri() if database else None
        return client, _experiment(client, experiment, folder)


def _experiment(client: Any, name: str, artifact_folder: str | None) -> str:
    """The id of the experiment `name`: found, brought back if it was deleted, or made."""
    from mlflow import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_folder, tags=EXPERIMENT_TAGS)
        except MlflowException:  # on a server, another driver may have made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    for tag, value in EXPERIMENT_TAGS.items():
        if tag not in found.tags:
            client.set_experiment_tag(found.experiment_id, tag, value)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def exists(client: Any, run_id: str) -> bool:
    """Whether a run can be resumed; a run that is gone is replaced by a new one."""
    from mlflow import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        log.warning("MLflow: run %s is not there any more, a new one is made", run_id)
        return False


def passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself."""
    return isinstance(error, ConnectionError | TimeoutError) or getattr(error, "error_code", None) in TRANSIENT


def _sqlite_file(uri: str) -> Path | None:
    """The absolute path of a SQLite URI's database; none for other URIs. The inverse of `sqlite_uri`."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).absolute()
