"""A stand-in of the Hugging Face hub on loopback, in the few answers that its clients ask for: data sets in a folder, and
repositories of models that are made and written."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee00" * 5
"""The one revision that every data set has, and every commit."""
TOKEN = "hf_of_the_stand_in"
"""Whoever writes must have it."""
PRIVATE = ".private"
"""The file of a repository of models that says whether it is private."""


class Handler(BaseHTTPRequestHandler):
    """Answers for one folder of data sets."""

    root: ClassVar[Path]

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] in (["api", "repos"], ["api", "models"], ["api", "validate-yaml"]):
            self._write(parts[1:], body)
            return
        paths = json.loads(body or b"{}").get("paths", [])
        self._json(_entries(self.root / parts[2] / parts[3], paths))

    def _write(self, parts: list[str], body: bytes) -> None:
        """Make a repository or a branch, say how files are wanted, take a commit: for whoever has the token."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._missing(401)
            return
        match parts:
            case ["repos", "create"]:
                asked = json.loads(body)
                folder = self.root / asked.get("organization", "me") / asked["name"]
                there = folder.exists()
                folder.mkdir(parents=True, exist_ok=True)
                if not there:
                    (folder / PRIVATE).write_text(json.dumps(asked.get("visibility") == "private"))
                address = f"http://{self.headers['Host']}/{folder.parent.name}/{folder.name}"
                self._json({"url": address}, 409 if there else 200)
            case ["validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["models", owner, name, "branch", branch]:
                (self.root / owner / name / branch).mkdir(exist_ok=True)
                self._json({})
            case ["models", _, _, "preupload", _]:
                files = [one["path"] for one in json.loads(body)["files"]]
                self._json({"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in files]})
            case ["models", owner, name, "commit", branch]:
                lines = [json.loads(line) for line in body.splitlines()]
                for line in lines:
                    if line["key"] == "file":
                        path = self.root / owner / name / branch / line["value"]["path"]
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(base64.b64decode(line["value"]["content"]))
                address = f"http://{self.headers['Host']}/{owner}/{name}/commit/{COMMIT}"
                self._json({"success": True, "commitUrl": address, "commitOid": COMMIT})
            case _:
                self._missing()

    def _answer(self, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and len(parts) >= 4 and (self.root / parts[2] / parts[3]).is_dir():
            folder = self.root / parts[2] / parts[3]
            if "tree" in parts:
                within = "/".join(parts[parts.index("tree") + 2 :])
                self._json(_entries(folder, [within] if within else None))
            else:
                self._json(_info(folder))
        elif parts[:2] == ["api", "models"] and (self.root / parts[2] / parts[3] / PRIVATE).is_file():
            folder = self.root / parts[2] / parts[3]
            self._json(_info(folder) | {"private": json.loads((folder / PRIVATE).read_text())})
        elif parts[0] == "datasets" and "resolve" in parts:
            self._file(self.root.joinpath(*parts[1:3], *parts[5:]), body)
        else:
            self._missing()

    def _json(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            self._missing()
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _missing(self, status: int = 404) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serve `root/<owner>/<name>/...` as data sets; the address is what HF_ENDPOINT wants."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"root": root}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


def _info(folder: Path) -> dict[str, object]:
    """What the hub says of a data set."""
    name = f"{folder.parent.name}/{folder.name}"
    files = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
    return {"id": name, "sha": COMMIT, "siblings": files, "private": False, "gated": False, "tags": [], "downloads": 0}


def _entries(folder: Path, within: list[str] | None) -> list[dict[str, object]]:
    """The files of a data set, of which `within` names some or their folders."""
    found: list[dict[str, object]] = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if within is None or any(name == one or name.startswith(f"{one}/") for one in within):
            oid = hashlib.sha1(path.read_bytes()).hexdigest()
            found.append({"type": "file", "path": name, "size": path.stat().st_size, "oid": oid})
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
