"""Where base models come from: the hub, and the packaged one."""

from __future__ import annotations

from raycl.doctor.finding import Finding, Places
from raycl.errors import SetupError, first_line


def hub(places: Places) -> Finding:
    """Whether the hub answers. Only runs whose model or data is on it need it, so a failure is a warning."""
    from raycl.models.places import ask_hub

    endpoint, error = ask_hub()
    if endpoint is None:
        return Finding("hub", "ok", "not asked: HF_HUB_OFFLINE is set")
    if error is None:
        return Finding("hub", "ok", f"{endpoint} answers")
    return Finding(
        "hub",
        "warning",
        f"{endpoint}: {error}",
        "models and data on the hub need it: check the connection, or HF_ENDPOINT; without it give --model FOLDER or "
        "packaged, and --data FOLDER (`raycl data fetch` makes one elsewhere)",
    )


def packaged(places: Places) -> Finding:
    """Whether the packaged model is installed. Only `--model packaged` needs it, which is the default without a GPU."""
    from raycl.models.places import packaged_gguf

    try:
        return Finding("packaged model", "ok", str(packaged_gguf()))
    except SetupError as error:
        return Finding(
            "packaged model", "warning", first_line(error).partition(". ")[0], "`make setup`, or --model FOLDER"
        )
