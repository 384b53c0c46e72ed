"""The deployment files have the forms of what reads them, and name what is there. Nothing is started."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import typer
import yaml
from pydantic import ValidationError

import raycl
from raycl.cli.app import app
from tests.deploy.forms import Compose, RayJob
from tests.kit.places import ROOT

DEPLOY = ROOT / "deploy"
RAY_FORM = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
DOCKERFILE = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE))


def read(name: str) -> Any:
    """A YAML file."""
    return yaml.safe_load((DEPLOY / name).read_text())


def instructions(word: str) -> list[str]:
    """What follows a word of the Dockerfile, in order."""
    return re.findall(rf"^{word} (.*)$", DOCKERFILE, flags=re.MULTILINE)


def commands() -> Iterator[list[str]]:
    """Every call of `raycl` in the files and on their page."""
    page = ROOT / "docs" / "deploying.md"
    for path in (*DEPLOY.iterdir(), page):
        for found in re.findall(
            r"(?:^|[ /])(raycl (?:run|doctor|plan) [^'\n`&]*)", path.read_text(), flags=re.MULTILINE
        ):
            words = shlex.split(found.partition("  ")[0], comments=True)
            yield [word for word in words if word not in ("$STORE", "$@")]


def test_the_launcher_file_has_rays_form() -> None:
    """With tokens on every node, and as many workers as addresses."""
    file = read("ray-cluster.yaml")
    jsonschema.validate(file, json.loads(RAY_FORM.read_text()))
    for kind in ("head", "worker"):
        start = file[f"{kind}_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE=token" in start
    assert any(path.endswith("/.ray/auth_token") for path in file["file_mounts"])
    assert file["max_workers"] == len(file["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(file | {"workers": 2}, json.loads(RAY_FORM.read_text()))


def test_the_job_of_kubernetes() -> None:
    """A RayJob in a queue of Kueue's, with tokens, without privileges, on a folder that all pods share."""
    file = read("rayjob.yaml")
    job = RayJob.model_validate(file)
    assert "kueue.x-k8s.io/queue-name" in job.metadata.labels
    spec = job.spec
    assert spec.shutdown_after_job_finishes, "Kueue admits no other"
    cluster = spec.ray_cluster_spec
    assert cluster.auth_options.mode == "token"
    assert cluster.ray_version == ray.__version__
    for group in (cluster.head_group_spec, *cluster.worker_group_specs):
        pod = group.template.spec
        assert pod.security_context.run_as_non_root
        assert pod.security_context.run_as_user == int(instructions("USER")[0])
        (container,) = pod.containers
        assert container.image.endswith(f"raycl:{raycl.__version__}")
        assert container.resources.requests == container.resources.limits
        assert {mount.name for mount in container.volume_mounts} == {volume.name for volume in pod.volumes}
        places = [mount.mount_path for mount in container.volume_mounts]
        used = [value for value in spec.entrypoint.split() if value.startswith("/")]
        used += [variable.value for variable in container.env]
        assert all(any(value.startswith(place) for place in places) for value in used)
    for group in cluster.worker_group_specs:
        assert group.min_replicas == group.replicas == group.max_replicas, "a run's workers do not change their number"
    wrong = file | {"spec": file["spec"] | {"queue": "raycl"}}
    with pytest.raises(ValidationError, match="queue"):
        RayJob.model_validate(wrong)


def test_the_compose_file() -> None:
    """Its files are there, its volumes are declared, and MLflow is reached from this machine only, by names it knows."""
    compose = Compose.model_validate(read("compose.yaml"))
    for name, service in compose.services.items():
        assert (DEPLOY / service.build.context / service.build.dockerfile).resolve() == DEPLOY / "Dockerfile"
        assert {volume.partition(":")[0] for volume in service.volumes} <= set(compose.volumes)
        assert all(port.startswith("127.0.0.1:") for port in service.ports), name
        assert set(service.depends_on) <= set(compose.services)
    server, client = compose.services["mlflow"], compose.services["raycl"]
    (hosts,) = (word.partition("=")[2].split(",") for word in server.command if word.startswith("--allowed-hosts="))
    assert client.environment["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts
    assert server.healthcheck is not None and client.depends_on["mlflow"].condition == "service_healthy"


def test_the_image() -> None:
    """Slim, of the lock with its hashes, for a user without privileges; what is copied is there and not ignored."""
    bases = instructions("FROM")
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert {base.partition(" ")[0] for base in bases} == {f"python:{oldest}-slim"}
    (installs, own) = (line for line in instructions("RUN") if line.startswith("pip install"))
    assert installs == "pip install --require-hashes --no-deps -r requirements.lock"
    assert "--no-deps" in own and "--no-build-isolation" in own
    assert [user for user in instructions("USER") if user in ("0", "root")] == [] and instructions("USER")
    assert DOCKERFILE.index("\nUSER") < DOCKERFILE.index("\nENTRYPOINT")
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert set(copied) == kept and all((ROOT / path).exists() for path in copied)
    assert "*" in ignored


def test_the_script_of_slurm_is_bash() -> None:
    """As bash reads it; shellcheck too where there is one."""
    script = DEPLOY / "slurm.sbatch"
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert script.read_text().startswith("#!/bin/bash\n")
    if checker := shutil.which("shellcheck"):
        done = subprocess.run([checker, "--severity=warning", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_every_command_that_is_named_is_one() -> None:
    """The flags of `raycl` in the files and on the page are flags of its verbs."""
    found = list(commands())
    assert len(found) > 6
    verbs = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue] -- a group's
    for _, verb, *arguments in found:
        known = {flag for parameter in verbs[verb].params for flag in parameter.opts}
        assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= known, arguments


def test_the_page_says_of_each_file_whether_it_was_run() -> None:
    """A row for each."""
    page = (ROOT / "docs" / "deploying.md").read_text()
    for path in DEPLOY.iterdir():
        if path.suffix != ".dockerignore":
            (row,) = re.findall(rf"^\| `deploy/{re.escape(path.name)}` \|.*$", page, flags=re.MULTILINE)
            assert re.search(r"\*\*no\*\*|yes", row), row
