"""Short sequences of every method on two tasks of the demo, as what is used afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from raycl import Options, find_head, resolve, run_sequence
from raycl.methods.registry import method_params
from raycl.sequence.job import make_job

ORDER = ("roget", "snippets")
SETTINGS: dict[str, dict[str, Any]] = {
    "gain_lora": {"gate_hidden": [8]},
    "migu": {"over": "sin_lora"},
    "lfpt5": {"length": 4},
    "prog_prompt": {"length": 4},
    "merging": {"merge": "mean"},
    "route_lora/hidden": {"features": "hidden", "region": "text", "unknown": "base", "unknown_quantile": 0.5},
    "route_lora/families": {"families": "merge", "family_below": 1.0},
    "route_lora/soft": {"routing": "soft"},
    "route_lora/t5": {"features": "hidden"},
    "per_task/full": {"trains": "full"},
    "mtl/full": {"trains": "full"},
    "migu/full": {"over": "seq_ft"},
    "merging/factors": {"refactor_rank": 3},
    "inc_lora/mix": {"mix": [0.5, 1.25]},
}
"""Method, and after a `/` which of its variants -> its settings; `/t5` is on a tiny T5."""
NOT_EXACT = ("gain_lora", "sapt_lora", "am_lora", "route_lora/soft")
"""Those whose branches are weighed by the input."""


class Trained:
    """Gives the output folder of a short sequence, each trained once."""

    def __init__(self, models: dict[str, Path], root: Path) -> None:
        self.models, self.root = models, root

    def __call__(self, run: str, family: str = "llama", name: str | None = None, **changes: Any) -> Path:
        """`run` is a method, or one of its variants; `changes` are settings of it, with a `name` of their own for the
        folder."""
        method, _, variant = run.partition("/")
        family = "t5" if variant == "t5" else family
        folder = self.root / (name or f"{run.replace('/', '-')}-{family}")
        if not folder.exists():
            known = method_params(method).model_fields
            rank = {"rank": 2} if "rank" in known else {}
            chosen = {key: value for key, value in SETTINGS.get(run, {}).items() if key in known}
            data = {"source": "demo", "train_examples": 16, "test_examples": 6, "max_source_tokens": 48}
            layer = {
                "order": ",".join(ORDER),
                "model": {"name": str(self.models[family]), "precision": "fp32"},
                "data": data | {"max_target_tokens": 8},
                "method": {"name": method, **rank, **chosen, **changes},
                "train": {"lr": 0.002 if variant == "full" else 0.02, "epochs": 2},
                "workers": 0,
            }
            tracking = f"sqlite:///{self.root / 'mlflow.db'}"
            options = Options(str(self.root / "store"), tracking, output=str(folder))
            run_sequence(resolve("laptop", [layer]), options, listeners=[])
        return folder


CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""A chat template."""


def chatting(models: dict[str, Path], root: Path) -> Trained:
    """The same on a decoder whose tokenizer has the template `CHAT`."""
    folder = Path(shutil.copytree(models["llama"], root / "model"))
    (folder / "chat_template.jinja").write_text(CHAT)
    return Trained({"llama": folder}, root)


def stored(folder: Path, task: str) -> list[str]:
    """The predictions that the last row of a sequence holds for a task."""
    head = find_head(str(folder))
    job = make_job(head.spec, head.store)
    cell = next(cell for cell in job.plan.cells_of(job.plan.stages[-1].row) if cell.task == task)
    return [row["prediction"] for row in head.store.read_predictions(cell.key)]


def assert_same_logits(ours: Tensor, theirs: Tensor) -> None:
    """Equal to fp32 round-off: within 1e-5 of the largest logit. How sums are rounded differs from CPU to CPU."""
    apart, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert apart <= 1e-5 * max(1.0, scale), f"{apart:.3g} apart, the largest is {scale:.3g}"
