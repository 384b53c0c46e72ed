"""New SQLite databases of MLflow as copies of one: to make its tables step by step takes over a second each time.

Here and in the commands that are forked; whatever is started anew makes its own as MLflow does, which
tests/tracking/test_tracker.py sees.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from raycl.tracking import server

WHOLE = Path(os.environ.setdefault("RAYCL_TESTS_DATABASE", os.path.join(os.environ["RAYCL_HOME"], "whole.db")))
"""The one that is copied, once there is one; processes that are forked find it in the environment."""


def copy_databases() -> None:
    """From here on, when raycl has loaded MLflow."""
    load = server.load_client

    def loads() -> None:
        load()
        from mlflow.store.db import utils

        if utils._initialize_tables is not fill:
            fill.makes = utils._initialize_tables
            utils._initialize_tables = fill

    server.load_client = loads


class Fill:
    """Fills an empty database with tables, in the place of MLflow's function."""

    makes: Any
    """MLflow's own."""

    def __call__(self, engine: Any) -> None:
        """From `WHOLE`, or as MLflow does, of which `WHOLE` is then a copy."""
        if engine.dialect.name != "sqlite":
            self.makes(engine)
            return
        with closing(engine.raw_connection()) as connection:
            if WHOLE.is_file():
                with closing(sqlite3.connect(WHOLE)) as whole:
                    whole.backup(connection.driver_connection)
                return
            self.makes(engine)
            new = WHOLE.with_suffix(f".{os.getpid()}")
            with closing(sqlite3.connect(new)) as whole:
                connection.driver_connection.backup(whole)
            new.replace(WHOLE)


fill = Fill()
