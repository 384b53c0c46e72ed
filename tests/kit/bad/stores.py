"""Bad stores, and bad arguments of `raycl store`."""

from __future__ import annotations

from tests.kit.bad.form import Bad, run

SEALED = (
    '{\n"kind": "raycl-store",\n"schema_version": 99,\n'
    '"seal": "0000000000000000000000000000000000000000000000000000000000000000"\n}\n'
)
KEY = "ab" * 32


def marked(text: str, *words: str) -> Bad:
    """`raycl run --store` where the marker holds this."""
    return Bad(
        "run",
        [*run(words=[]).arguments, "--store", "{tmp}/s"],
        words,
        {"s/raycl-store.json": text, "s/stages/x": "mine"},
    )


KEPT = ("raycl-store.json", "keep the store", "raycl store repair")
ROWS = [
    marked("", *KEPT),
    marked("{}", "schema version"),
    marked("[]", *KEPT),
    marked("\x00", *KEPT),
    marked('{"schema_version": 1}', *KEPT),
    marked(SEALED, "schema version 99", "reads version 1"),
    run("--store", "{tmp}/file", words=["{tmp}/file"], file="mine"),
    run("--store", "{tmp}", words=["no raycl store", "empty folder"], **{"thesis.tex": "theirs"}),
    run("--store", "nosuch://bucket/x", words=["nosuch", "fsspec"]),
    run("--store", "s3://me:secret@host/x", words=["holds a password"]),
    run("--store", "{tmp}/file/x", words=["{tmp}"], file=""),
    run("--tracking", "https://me:secret@host/", words=["holds a password", "MLFLOW_TRACKING_PASSWORD"]),
    Bad("store", ["ls", "--store", "/no/store"], ["/no/store", "there is no store"]),
    Bad("store", ["verify", "--store", "/no/store"], ["there is no store"]),
    Bad("store", ["repair", "--store", "/no/store"], ["there is no store"]),
    Bad("store", ["gc", "--store", "/no/store"], ["there is no store"]),
    Bad("store", ["du", "--store", "/no/store"], ["there is no store"]),
    Bad("store", ["nosuch"], ["nosuch"]),
    Bad("store", ["show"], ["key"]),
    Bad("store", ["show", "ab", "--store", "/no/store"], ["there is no store"]),
    Bad("store", ["repair", "--store", "{tmp}/t"], ["thesis.tex"], {"t/thesis.tex": "theirs"}),
]
