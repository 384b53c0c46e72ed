"""Why rows of benchmarks/performance.py are short of their bars, as profiles show it; its page has it of those that are."""

from __future__ import annotations

from collections.abc import Mapping

BF16_STACK = (
    "Over a bf16 weight old branches stay a stack, whose multiply-adds alone are 1.06 of a LoRA's step at 15 "
    "branches and 1.27 at 64 (in fp32 they are folded: 0.96 to 0.99). Rows "
    "of one process moved by 0.1 to 0.4 with where its memory came to lie; three of one row are 0.01 to 0.03 apart."
)
SHAPES = (
    "The branches' multiply-adds alone, in the row's floor, are above or near the bar at rank 8. At 64 branches "
    "their products take 6 % of the T5 step, weighing rank features 4 %, T5's attention with its position bias 24"
    " %; two calls gave 1.80 and 1.18 for the same row."
)
EVALUATION = (
    "On a CPU the one pass over the prompts is nearly all: 10.0 of 11.4 s under gates, where reading labels takes "
    "1.25 s and writing them token by token 1.4 s (profile on a quiet machine, fp32). What is written are one to "
    "four tokens of an answer that ends by itself, and gates read the whole prompt, so that no beginning can be "
    "shared: if labels cost nothing at all, the ratio would be 1.14. Not measured on a GPU."
)
PASSES = (
    "Of a stage of one epoch over 200 examples (20 to 38 s of training) the passes before and after take 5 and 4 "
    "s at 8 tokens a dimension: a forward pass over 4,600 tokens each (1.5 to 2 s), the sums of outer products, "
    "and 30 symmetric decompositions of 576 x 576 each (1.2 s). The published 10 to 100 epochs bring that below 4"
    " %."
)
USEFUL = (
    "Beside training: 10 to 12 s of start (imports, plan, model), 2 s of importing MLflow, 4 to 5 s of page and 33 "
    "pictures at the end, and 1 to 1.5 s a stage: putting 60 adapters on twice 0.2 to 0.4, publishing a state 0.2, "
    "the rest in many small parts (batches, checks that the frozen weights are what they were, records)."
)
REASONS: dict[str, str] = {
    "step-packaged": BF16_STACK,
    "step-t5-large": SHAPES,
    "step-llama-7b": SHAPES,
    "found-15": (
        "Imports: torch alone takes 1.8 to 2.6 s (`python -X importtime`), and methods, whose settings keys are "
        "made of, import it."
    ),
    "first-step-local": (
        "Of 12 s 3.5 go by until the plan stands (imports of torch among them), 4 to 5 with imports of "
        "transformers' modelling code, which brings torch's compiler and distributed tensors, 1.4 with reading "
        "the weights; the same row has given 9.9 s."
    ),
    "first-step-group": (
        "One after the other, on two cores: Ray's own processes 5 s; a queue and Ray Train's controller, which "
        "imports torch, 6; the worker's and a synchronising actor's processes 3; the worker's imports 3. Two "
        "actors of Ray Train's that a cluster of its own has no use for are left out since (35.4 to 28.1 s to the"
        " first step in one measurement)."
    ),
    "between-stages-2": (
        "Not profiled yet. Two processes do on two cores what one does there alone (1.0 s): both put the adapters "
        "on, and one waits while the other publishes."
    ),
    "not-useful": USEFUL,
    "passes": PASSES,
    "evaluation": EVALUATION,
    "packed-8": (
        "Eight rows fill a core's matrix units already: in one thread, products of 32 rows in the place of four "
        "of 8 take 1.38 x less time in bf16 and 1.02 x in fp32, and attention, norms and the optimizers cost the "
        "same either way."
    ),
}
"""What the names of rows begin with -> why. The longest beginning counts."""


def reason(name: str, reasons: Mapping[str, str]) -> str:
    """Why a row is short; that nobody knows yet, where nothing says so."""
    found = [start for start in reasons if name.startswith(start)]
    return reasons[max(found, key=len)] if found else "Not profiled yet."
