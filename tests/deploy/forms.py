"""What the deployment files may hold: the part that they use of KubeRay's, Kubernetes' and Compose's forms, no more.

Written after the RayJob types of KubeRay 1.6 (ray.io/v1), core/v1 of Kubernetes and the Compose specification. Ray's form
of its cluster files comes with Ray.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""RFC 1123's label."""
LabelName = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=316)
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGT]i?)?$")]


class Form(BaseModel):
    """Only the fields that are named, of their own types, with the names that the files have."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=lambda name: _camel(name))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


class Metadata(Form):
    """ObjectMeta."""

    name: Name
    labels: dict[LabelName, LabelValue]


class Resources(Form):
    """ResourceRequirements."""

    requests: dict[LabelName, Quantity]
    limits: dict[LabelName, Quantity]


class Capabilities(Form):
    """Capabilities."""

    drop: list[str]


class ContainerSecurity(Form):
    """SecurityContext."""

    allow_privilege_escalation: bool
    capabilities: Capabilities


class PodSecurity(Form):
    """PodSecurityContext."""

    run_as_non_root: bool
    run_as_user: int = Field(gt=0)
    fs_group: int


class Variable(Form):
    """EnvVar."""

    name: str
    value: str


class Mount(Form):
    """VolumeMount."""

    name: Name
    mount_path: str = Field(pattern="^/")


class Container(Form):
    """Container."""

    name: Name
    image: str
    env: list[Variable]
    resources: Resources
    security_context: ContainerSecurity
    volume_mounts: list[Mount]


class Claim(Form):
    """PersistentVolumeClaimVolumeSource."""

    claim_name: Name


class Volume(Form):
    """Volume."""

    name: Name
    persistent_volume_claim: Claim


class PodSpec(Form):
    """PodSpec."""

    security_context: PodSecurity
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume]


class Template(Form):
    """PodTemplateSpec."""

    spec: PodSpec


class HeadGroup(Form):
    """HeadGroupSpec."""

    ray_start_params: dict[str, str]
    template: Template


class WorkerGroup(HeadGroup):
    """WorkerGroupSpec."""

    group_name: Name
    replicas: int
    min_replicas: int
    max_replicas: int


class Auth(Form):
    """AuthOptions."""

    mode: Literal["token", "disabled"]


class ClusterSpec(Form):
    """RayClusterSpec."""

    ray_version: str
    auth_options: Auth
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]


class JobSpec(Form):
    """RayJobSpec."""

    entrypoint: str
    backoff_limit: int = Field(ge=0)
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int = Field(ge=0)
    ray_cluster_spec: ClusterSpec


class RayJob(Form):
    """RayJob."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class Plain(BaseModel):
    """As `Form`, for a file whose names are written with underscores."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Build(Plain):
    """How an image is built; paths from the file's own folder."""

    context: str
    dockerfile: str


class Healthcheck(Plain):
    """When a service counts as ready."""

    test: list[str]
    interval: str
    timeout: str
    retries: int


class Depends(Plain):
    """What a service waits for."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Service(Plain):
    """A service."""

    image: str
    build: Build
    volumes: list[str]
    environment: dict[str, str]
    command: list[str]
    entrypoint: list[str] | None = None
    shm_size: str | None = None
    depends_on: dict[str, Depends] = Field(default_factory=dict)
    profiles: list[str] = Field(default_factory=list)
    ports: list[str] = Field(default_factory=list)
    healthcheck: Healthcheck | None = None


class Compose(Plain):
    """A Compose file."""

    services: dict[str, Service]
    volumes: dict[str, None]
