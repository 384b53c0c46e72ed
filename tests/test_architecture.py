"""The rooms of raycl: who may import what, nothing that runs strangers' code, everything documented and annotated."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycl.methods.registry import METHODS

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("raycl", "jobs") for path in (ROOT / room).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
ROOMS = {
    "ray": [
        "raycl/cluster.py",
        "raycl/sequence/group.py",
        "raycl/sequence/group_trainer.py",
        "raycl/sequence/group_worker.py",
        "raycl/comparison/pool.py",
        "raycl/sweep/tune.py",
        "raycl/sweep/optuna_search.py",
    ],
    "optuna": ["raycl/sweep/optuna_search.py"],
    "deepspeed": ["raycl/train/engine_deepspeed.py"],
    "mlflow": ["raycl/tracking/server.py", "raycl/tracking/runs.py", "raycl/tracking/models.py"],
    "fastapi": ["raycl/use/serving/app.py"],
    "starlette": [],
    "uvicorn": ["raycl/use/serving/run.py"],
    "httpx2": ["raycl/use/serving/upstream.py"],
    "peft": ["raycl/adapters/"],
    "safetensors": ["raycl/state/"],
    "fsspec": ["raycl/state/", "raycl/tasks/tables.py"],
    "transformers": ["raycl/models/", "raycl/adapters/carriers.py", "raycl/testing/"],
    "huggingface_hub": ["raycl/models/"],
    "datasets": ["raycl/tasks/"],
    "typer": ["raycl/cli/"],
    "rich": ["raycl/report/"],
    "pandas": ["raycl/report/", "raycl/analysis/matrix.py"],
    "matplotlib": ["raycl/report/"],
    "jinja2": ["raycl/report/", "raycl/tasks/templates.py"],
    "pyarrow": ["raycl/tasks/"],
    "pytest": ["raycl/testing/"],
    "sacrebleu": ["raycl/tasks/scoring.py"],
    "scipy": ["raycl/analysis/", "raycl/adapters/gradient_cone.py"],
    "torch": [
        *("raycl/analysis/angles.py", "raycl/comparison/runner.py", "raycl/cluster.py"),
        *(
            f"raycl/{room}/"
            for room in ("adapters", "methods", "models", "sequence", "state", "testing", "train", "use")
        ),
    ],
}
"""Library -> the files and folders that may import it."""
TYPES_ONLY = {"transformers": ["raycl/train/batches.py", "raycl/train/chat.py", "raycl/use/served.py"]}
"""Files that may name a library's types, which costs no import when they run."""
SETTINGS = {"fields", "sections", "spec"}
"""What can be set, and what of it is in keys."""
STAGE = {"errors", "events", "files", *SETTINGS, "tasks", "state", "adapters", "models", "methods", "train"}
"""What the rooms above a stage build on."""
MANY = STAGE | {"analysis", "cluster", "presets", "reading", "report", "sequence", "tracking"}
"""What the rooms of many sequences build on; none of them knows another."""
KNOWS: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "fields": {"files"},
    "sections": {"fields", "files"},
    "spec": {"errors", "fields", "files", "sections"},
    "reading": {"errors"},
    "presets": {"errors", "files", "reading", *SETTINGS},
    "tasks": {"errors", "files", "reading", *SETTINGS},
    "events": {"files"},
    "state": {"errors", "events", "files", "raycl", *SETTINGS},
    "adapters": {*SETTINGS, "state"},
    "models": {"adapters", "errors", "files", *SETTINGS},
    "methods": {"adapters", "errors", "files", *SETTINGS, "state", "tasks"},
    "train": {"adapters", "errors", "events", "files", "methods", "models", *SETTINGS, "state", "tasks"},
    "testing": STAGE,
    "skeleton": {"errors", "files", "methods"},
    "cluster": {"errors"},
    "tracking": {"analysis", "errors", "events", "files", "raycl", *SETTINGS},
    "analysis": {"events", "files", *SETTINGS, "state"},
    "report": {"analysis", "doctor", "errors", "events", "files", "methods", *SETTINGS, "state", "tasks"},
    "sequence": STAGE | {"analysis", "cluster", "presets", "report", "tracking"},
    "sweep": MANY,
    "comparison": MANY,
    "reproduction": MANY,
    "doctor": {"cluster", "errors", "files", "models", "state", "tracking", "train"},
    "use": MANY | {"raycl"},
    "cli": MANY | {"doctor", "use"} | {"comparison", "raycl", "reproduction", "skeleton", "sweep"},
    "raycl": MANY | {"doctor", "use"} | {"comparison", "skeleton", "sweep"},
    "__main__": {"cli"},
    "jobs": {"cli"},
}
"""Room -> the rooms it may import; downwards only."""
STATE_SEEN_BELOW = {"raycl.state.stage_state"}
"""What adapters and methods may see of the state: its types, never the store."""
TASKS_SEEN_BELOW = {"raycl.tasks.task", "raycl.tasks.sampling", "raycl.tasks.stored"}
"""What methods may see of the tasks: examples and how to draw some, never a source."""
FORBIDDEN = ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
CALLS = re.compile(r"^(eval|exec|compile|__import__|yaml\.(unsafe_)?load|torch\.load|os\.system|pickle\..*)$")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module a file imports, wherever in it, and whether only for its types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", id(node) in typed


def room_of(name: str) -> str:
    """The room of a file or a module: its first part below raycl, or jobs."""
    parts = name.removesuffix(".py").replace("/", ".").split(".")
    return parts[0] if parts[0] != "raycl" else (parts[1] if len(parts) > 1 and parts[1] != "__init__" else "raycl")


@pytest.mark.parametrize("name", NAMES)
def test_a_library_is_known_only_to_its_room(name: str) -> None:
    """Ray, DeepSpeed, MLflow, PEFT and the rest each have one place."""
    for module, typed in imports(ROOT / name):
        library = module.partition(".")[0]
        allowed = ROOMS.get(library, [name]) + (TYPES_ONLY.get(library, []) if typed else [])
        assert any(name == one or (one.endswith("/") and name.startswith(one)) for one in allowed), (
            f"{name} imports {module}: only {', '.join(allowed)} may"
        )


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_downwards(name: str) -> None:
    """run -> train -> methods -> adapters; run -> state; everything -> spec; nothing upwards, not even for types."""
    room = room_of(name)
    for module, _ in imports(ROOT / name):
        if not module.startswith("raycl"):
            continue
        target = room_of(module)
        assert target == room or target in KNOWS.get(room, set()), f"{name} (room {room}) imports {module}"
        if target == "state" and room in ("adapters", "methods"):
            assert module in STATE_SEEN_BELOW, f"{name} imports {module}: only the state's types are for methods"
        if target == "tasks" and room == "methods":
            assert module in TASKS_SEEN_BELOW, f"{name} imports {module}: only examples are for methods"


def test_methods_are_one_file_each_and_what_they_share_knows_none_of_them() -> None:
    """`raycl/methods/` holds the registered methods and what finds methods; `common/` stands below both."""
    room = ROOT / "raycl" / "methods"
    files = {place.partition(":")[0].rpartition(".")[2] for place in METHODS.values()}
    assert {path.stem for path in room.glob("*.py")} == files | {"__init__", "registry", "outside", "sources"}
    for path in (room / "common").glob("*.py"):
        above = [module for module, _ in imports(path) if module.startswith("raycl.methods.")]
        assert all(module.startswith("raycl.methods.common.") for module in above), f"{path.name} imports {above}"


def test_the_rooms_have_no_circle() -> None:
    """The table above is an order: some room knows nothing, and taking it away leaves another such room."""
    left = {room: set(known) - {"raycl"} for room, known in KNOWS.items() if room != "raycl"}
    while left:
        lowest = {room for room, known in left.items() if not known & set(left)}
        assert lowest, f"circle among {sorted(left)}"
        left = {room: known for room, known in left.items() if room not in lowest}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_can_run_code_of_strangers(name: str) -> None:
    """No pickle, no eval or exec, no unsafe YAML, no torch.load; transformers is told never to run a model's code."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    assert not [module for module, _ in imports(ROOT / name) if module.partition(".")[0] in FORBIDDEN]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert not CALLS.match(called), f"{name}:{node.lineno} calls {called}"
        trust = {word.arg: word.value for word in node.keywords}.get("trust_remote_code")
        if "transformers" in ROOMS and called.endswith(".from_pretrained") and name.startswith("raycl/models/"):
            local = any(word.arg is None for word in node.keywords)
            assert local or (isinstance(trust, ast.Constant) and trust.value is False), f"{name}:{node.lineno}"
        assert trust is None or (isinstance(trust, ast.Constant) and trust.value is False)
        shell = {word.arg: word.value for word in node.keywords}.get("shell")
        assert shell is None, f"{name}:{node.lineno} starts a shell"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_public_is_documented_and_annotated(name: str) -> None:
    """Every public module, class and function says what it is for; every argument and result has a type."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    empty = not tree.body
    assert empty or ast.get_docstring(tree), f"{name} has no docstring"
    for node, public in definitions(tree, True):
        where = f"{name}:{node.lineno} {node.name}"
        if public:
            assert ast.get_docstring(node), f"{where} has no docstring"
        if not isinstance(node, ast.ClassDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
            missing = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls")]
            assert not missing, f"{where}: no type for {', '.join(missing)}"
            assert node.returns is not None, f"{where}: no type for the result"


def definitions(
    tree: ast.AST, public: bool
) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Classes and functions with their methods, and whether they are public; functions inside functions are not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            open_to_all = public and not node.name.startswith("_")
            yield node, open_to_all
            inside = open_to_all and isinstance(node, ast.ClassDef)
            yield from definitions(node, inside)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short_and_lines_fit(name: str) -> None:
    """Files below 350 lines of at most 125 columns. Functions are bounded by ruff: branches and arguments, not lines."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 350
    assert max(map(len, lines), default=0) <= 125


def test_a_job_is_only_an_entry_point() -> None:
    """No logic in jobs/: an import and a call."""
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) < 12


def test_no_page_holds_an_unresolved_merge() -> None:
    """The marks that a merge leaves where both sides changed a line: code with them does not run, a page reads on."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks" / "results").rglob("*.md")]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    assert [str(page) for page, text in texts.items() if re.search(r"^(<{7} |={7}$|>{7} )", text, re.MULTILINE)] == []
