"""How MLflow loads the model that a run has logged (`raycl.tracking.models`): by `_load_pyfunc` of this module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycl.errors import SpecError, StoreError, shown
from raycl.tracking.models import NOTE
from raycl.use.heads import Head, head_of_note
from raycl.use.served import Served, load_base

if TYPE_CHECKING:
    from raycl.models.load import LoadedModel


class PyfuncModel:
    """A finished state behind MLflow's `predict`: texts in, answers out. The base model is loaded at the first one."""

    def __init__(self, head: Head, model: str | None = None, device: str | None = None) -> None:
        """`model` and `device` as in `raycl.load`."""
        self._head, self._model, self._device = head, model, device
        self._loaded: LoadedModel | None = None

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """The answers to prompts, in order, greedy, with gates and routes in place.

        `data` is a list or an array of texts, or a table whose first column has them; `params` may have `task` (whose
        prompt the texts are put into, needed where the method must be told whose inputs come) and `max_tokens` (0 = as
        when it is scored). Raises SpecError for other data, an unknown task and a negative limit.
        """
        said = params or {}
        task, tokens = str(said.get("task") or "") or None, int(said.get("max_tokens") or 0)
        if tokens < 0:
            raise SpecError(f"params: max_tokens {tokens}; allowed: 1 or more, or 0 = as when it is scored")
        if self._head.needs_task and task not in self._head.spec.tasks:
            raise SpecError(
                f"params: task {shown(task)}, and the method {self._head.spec.method.name} must be told whose inputs come; "
                f"allowed: {', '.join(self._head.spec.tasks)}"
            )
        texts = _texts(data)
        if self._loaded is None:
            self._loaded = load_base(self._head, self._model, self._device)
        with Served(self._head, self._loaded, task) as served:
            return [answer.text for answer in served.generate(texts, tokens or None, task=task)]


def _texts(data: Any) -> list[str]:
    """The texts of what MLflow hands on. Raises SpecError for anything but texts."""
    if hasattr(data, "iloc") and getattr(data, "ndim", 1) == 2:
        data = data.iloc[:, 0] if data.shape[1] else []
    found = [data] if isinstance(data, str) else [] if isinstance(data, Mapping) else list(data)
    odd = next((one for one in found if not isinstance(one, str)), None)
    if not found or odd is not None:
        what = type(odd).__name__ if odd is not None else f"{type(data).__name__} without a text"
        raise SpecError(f"data: {what}; allowed: a list or an array of texts, or a table whose first column has them")
    return [str(one) for one in found]


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> PyfuncModel:
    """What MLflow calls; `model_config` as in `raycl.tracking.models`. Raises StoreError for stages that are not there."""
    config = {name: value or None for name, value in (model_config or {}).items()}
    try:
        head = head_of_note(Path(path) / NOTE, config.get("store"), name="this model")
    except StoreError as error:
        raise StoreError(str(error).replace("with --store", 'by model_config={"store": ...}')) from None
    return PyfuncModel(head, config.get("model"), config.get("device"))
