"""What a sequence is called: its output folder, its MLflow run, its method in words."""

from __future__ import annotations

from raycl.methods.registry import outside_method, short_name
from raycl.spec import RunSpec
from raycl.state.keys import content_key
from raycl.tasks.orders import order_title


def method_words(spec: RunSpec) -> str:
    """The method's name, with the method it works over."""
    name, over = short_name(spec.method.name), getattr(spec.method, "over", None)
    return f"{name} over {over}" if over else name


def run_name(spec: RunSpec) -> str:
    """A readable name for a folder, which two different specs never share."""
    order = spec.order if "," not in spec.order else f"custom-{len(spec.tasks)}"
    method = method_words(spec).replace(" over ", "-")
    return f"{order.replace(':', '-').replace('/', '-')}-{method}-seed{spec.seed}-{_digest(spec)}"


def run_title(spec: RunSpec, label: str | None = None) -> str:
    """A name for people, which two different specs never share: method or `label`, order or tasks, seed."""
    return f"{label or method_words(spec)} · {order_title(spec.order)} · seed {spec.seed} · {_digest(spec)}"


def _digest(spec: RunSpec) -> str:
    """Eight digits that tell specs apart, and sources of an outside method; where a sequence runs does not matter."""
    outside = outside_method(spec.method.name)
    source = {"source": outside.source} if outside else {}
    return content_key({"spec": spec.model_dump(mode="json", exclude={"workers", "groups"}), **source})[:8]
