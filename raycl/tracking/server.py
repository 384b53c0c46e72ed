"""MLflow's side: where it records, a client, an experiment, and which of its failures may pass.

MLflow is imported only when a client is made, because the import takes seconds.
"""

from __future__ import annotations

import logging
import os
import shlex
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from raycl.errors import SetupError, SpecError, has_password, shown
from raycl.files import home

log = logging.getLogger(__name__)
LOCK_SECONDS = 1.0
"""Longest wait for another process that makes or migrates the same SQLite database; after it, MLflow counts as away."""
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


OFF = "off"
"""The tracking URI that stands for none: nothing is recorded in MLflow."""


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

    Raises SpecError for one that is neither a URI nor `off`, SetupError where MLflow is wanted and not installed.
    """
    uri = uri or default_uri()
    if uri == OFF:
        return uri
    if find_spec("mlflow") is None:
        raise SetupError(
            "MLflow is not installed here; next step: `pip install mlflow`, or give `--tracking off`, which records in the "
            "output folder alone"
        )
    if "://" not in uri and uri != "databricks":
        raise SpecError(
            f"tracking URI {shown(uri)}: allowed are sqlite:///<file>, http(s)://<host>:<port>, MLflow's others, and off"
        )
    if has_password(uri):
        raise SpecError(
            "the tracking URI holds a password, and URIs are recorded and shown; next step: give it without, and "
            "the name and "
            "the password in the environment: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD"
        )
    database = _sqlite_file(uri)
    return sqlite_uri(database, uri.partition("?")[2]) if database else uri


def mlflow_ui_command(uri: str) -> str:
    """The command line that opens the runs recorded under `uri` in a browser."""
    if urlsplit(uri).scheme in ("http", "https"):
        return f"python -m webbrowser {shlex.quote(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def load_client() -> None:
    """Import MLflow, quiet. It takes seconds, which are not to be taken for a server that does not answer."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """A client and the experiment's id; a missing database or experiment is made, by one process at a time.

    Raises filelock.Timeout where another process is at it for more than `LOCK_SECONDS`, and what MLflow raises.
    """
    load_client()
    from mlflow import MlflowClient

    database = _sqlite_file(uri)
    if database:
        database.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that migrate one SQLite file at once fail with "duplicate column".
    with FileLock(f"{database}.lock", timeout=LOCK_SECONDS) if database else nullcontext():
        client = MlflowClient(tracking_uri=uri)
        folder = (database.parent / "mlartifacts").as_uri() if database else None
        return client, _experiment(client, experiment, folder)


def try_writing(uri: str, experiment: str = "raycl") -> None:
    """Write a tag to the experiment, which is made where it is missing. Raises what MLflow raises."""
    client, found = connect(uri, experiment)
    client.set_experiment_tag(found, "raycl.checked", datetime.now(UTC).isoformat(timespec="seconds"))


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


def find_marked(client: Any, experiment: str, tag: str, mark: str) -> str | None:
    """The id of the experiment's run whose `tag` is `mark`; none if there is none."""
    found = client.search_runs([experiment], f"tags.`{tag}` = '{mark}'", max_results=1)
    return found[0].info.run_id if found else None


def is_local(uri: str) -> bool:
    """Whether it is a database that this process works on itself, so that a long call is no sign of a silent server."""
    return _sqlite_file(uri) is not None


def passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself."""
    return isinstance(error, ConnectionError | TimeoutError) or getattr(error, "error_code", None) in TRANSIENT


def _sqlite_file(uri: str) -> Path | None:
    """The absolute path of a SQLite URI's database; none for other URIs. The inverse of `sqlite_uri`."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).absolute()
