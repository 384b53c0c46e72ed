"""An export on the Hugging Face hub: a repository of models, with the folder's files in one commit."""

from __future__ import annotations

import os
from pathlib import Path

from raycl.errors import SetupError, SpecError, first_line

TOKEN = "HF_TOKEN"
"""The environment variable that holds the token; no other place is looked at."""
MARKS = ("adapter_config.json", "config.json", "adapters")
"""What one of an export's files or folders is called, beside its card."""


def push(folder: Path, name: str, private: bool = False, revision: str | None = None) -> str:
    """Put an export into the repository `name` (org/name), made if it is not there, and return the commit's address.

    `revision` is a branch, made if it is not there; none = main. A repository that is there keeps what is in other files.
    Raises SpecError for a folder that is no export, without a token, and for `private` where the repository is public;
    SetupError where the hub refuses or is not reached.
    """
    if not (folder / "README.md").is_file() or not any((folder / mark).exists() for mark in MARKS):
        raise SpecError(f"{folder}: is no export; next step: make one with `raycl export RUN --to {folder}`")
    token = os.environ.get(TOKEN)
    if not token:
        raise SpecError(
            f"{TOKEN}: is not set; next step: make a token with write access in the hub's settings, and set it in the "
            "environment"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        api.create_repo(name, repo_type="model", private=private, exist_ok=True)
        if private and not api.repo_info(name, repo_type="model").private:
            raise SpecError(f"--private: {name} is there already and is public; nothing was written; name another one")
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, revision=revision, commit_message="An export of raycl"
        )
    except HFValidationError as error:
        raise SpecError(f"{name}: is no name of a repository ({first_line(error)}); allowed: org/name") from None
    except (HfHubHTTPError, OSError) as error:
        why = f"{type(error).__name__}: {first_line(error)[:300]}"
        raise SetupError(
            f"{name}: the hub did not take it ({why}); next step: see that the token may write there"
        ) from None
    return str(done.commit_url)
