"""raycl: continual learning of large language models on Ray.

A sequence from Python:

    import raycl

    spec = raycl.resolve("laptop", [{"order": "demo", "method": {"name": "o_lora"}}])
    result = raycl.run_sequence(spec, raycl.Options(store="my-store"))
    print(result.matrix.summary())

Every name is imported when it is first used, so that `import raycl` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raycl.analysis.matrix import AccuracyMatrix
    from raycl.comparison.driver import ComparisonResult, run_comparison
    from raycl.comparison.grid import GridSpec
    from raycl.doctor.finding import Finding, Places
    from raycl.doctor.run import examine
    from raycl.errors import DataError, SetupError, SpecError, StoreError, UserError
    from raycl.events import Event, Listener
    from raycl.methods.common.base import Method
    from raycl.models.push import push
    from raycl.report.terminal import Terminal
    from raycl.sequence.driver import Options, SequenceResult, run_sequence
    from raycl.sequence.job import SequenceJob, make_job
    from raycl.sequence.outlook import look_ahead
    from raycl.sequence.resolve import resolve
    from raycl.skeleton.write import new_method
    from raycl.spec import MethodParams, RunSpec
    from raycl.state.stage_state import Branch, StagePart, StageState
    from raycl.state.store import Store
    from raycl.sweep.plan import SweepRequest, SweepSettings
    from raycl.sweep.run import SweepResult, run_sweep
    from raycl.tasks.task import Example, Task
    from raycl.use.export import export
    from raycl.use.forms import ExportChange
    from raycl.use.growing import append, forget
    from raycl.use.heads import find_head
    from raycl.use.imported import ForeignAdapter, import_adapter
    from raycl.use.predictions import predictions
    from raycl.use.served import load
    from raycl.use.serving.app import make_app
    from raycl.use.serving.front import Serving
    from raycl.use.serving.upstream import Upstream

__version__ = "0.1.0"
HOMES = {
    "raycl.analysis.matrix": ("AccuracyMatrix",),
    "raycl.comparison.driver": ("ComparisonResult", "run_comparison"),
    "raycl.comparison.grid": ("GridSpec",),
    "raycl.doctor.finding": ("Finding", "Places"),
    "raycl.doctor.run": ("examine",),
    "raycl.errors": ("DataError", "SetupError", "SpecError", "StoreError", "UserError"),
    "raycl.events": ("Event", "Listener"),
    "raycl.methods.common.base": ("Method",),
    "raycl.models.push": ("push",),
    "raycl.report.terminal": ("Terminal",),
    "raycl.sequence.driver": ("Options", "SequenceResult", "run_sequence"),
    "raycl.sequence.job": ("SequenceJob", "make_job"),
    "raycl.sequence.outlook": ("look_ahead",),
    "raycl.sequence.resolve": ("resolve",),
    "raycl.skeleton.write": ("new_method",),
    "raycl.spec": ("MethodParams", "RunSpec"),
    "raycl.state.stage_state": ("Branch", "StagePart", "StageState"),
    "raycl.state.store": ("Store",),
    "raycl.sweep.plan": ("SweepRequest", "SweepSettings"),
    "raycl.sweep.run": ("SweepResult", "run_sweep"),
    "raycl.tasks.task": ("Example", "Task"),
    "raycl.use.export": ("export",),
    "raycl.use.forms": ("ExportChange",),
    "raycl.use.growing": ("append", "forget"),
    "raycl.use.heads": ("find_head",),
    "raycl.use.predictions": ("predictions",),
    "raycl.use.imported": ("ForeignAdapter", "import_adapter"),
    "raycl.use.served": ("load",),
    "raycl.use.serving.app": ("make_app",),
    "raycl.use.serving.front": ("Serving",),
    "raycl.use.serving.upstream": ("Upstream",),
}
"""Module -> the names that it gives to the face."""
__all__ = [
    "AccuracyMatrix",
    "Branch",
    "ComparisonResult",
    "DataError",
    "Event",
    "Example",
    "ExportChange",
    "Finding",
    "ForeignAdapter",
    "GridSpec",
    "Listener",
    "Method",
    "MethodParams",
    "Options",
    "Places",
    "RunSpec",
    "SequenceJob",
    "SequenceResult",
    "Serving",
    "SetupError",
    "SpecError",
    "StagePart",
    "StageState",
    "Store",
    "StoreError",
    "SweepRequest",
    "SweepResult",
    "SweepSettings",
    "Task",
    "Terminal",
    "Upstream",
    "UserError",
    "__version__",
    "append",
    "examine",
    "export",
    "find_head",
    "forget",
    "import_adapter",
    "load",
    "look_ahead",
    "make_app",
    "make_job",
    "new_method",
    "predictions",
    "push",
    "resolve",
    "run_comparison",
    "run_sequence",
    "run_sweep",
]


def __getattr__(name: str) -> Any:
    """Import a name of the face when it is first used."""
    for home, names in HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names of the face."""
    return sorted(__all__)
