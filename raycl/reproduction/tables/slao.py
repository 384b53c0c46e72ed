"""SLAO (Merge before Forget, arXiv 2512.23017): main table. All figures are second hand."""

from __future__ import annotations

from raycl.reproduction.form import Column, Reproduction, Row

LONG = ("long-4", "long-5", "long-6")
SAME = "Run with SLAO's rate, epochs and batch; whether the paper did so is not confirmed."


def _row(name: str, note: str = SAME, own: bool = False, **fields: object) -> Row:
    label = "merging (MagMax)" if name == "merging" else name
    return Row(label=label, settings={"method": {"name": name, **fields}}, own=own, note=note)


REPRODUCTIONS = (
    Reproduction(
        id="slao/main",
        title="Main table: Llama-2-7B-chat, standard, long and SuperNI",
        published="SLAO, main table",
        columns=(
            Column(label="standard", model="llama-2-7b-chat", orders=("std-1", "std-2", "std-3")),
            Column(label="long", model="llama-2-7b-chat", orders=LONG),
            Column(label="SuperNI", model="llama-2-7b-chat", orders=("sni-1", "sni-2")),
            Column(label="BWT long", model="llama-2-7b-chat", orders=LONG, measures=("BWT",)),
        ),
        rows=(
            _row("sin_lora"),
            _row("inc_lora"),
            _row("o_lora", lambda1=0.5, lambda2=0.0),
            _row("inf_lora"),
            _row("sapt_lora", "Replays inputs of earlier tasks. SAPT's own published settings.", own=True),
            _row("merging", f"{SAME} What is merged, products or factors, is not said; raycl merges products."),
            _row("slao", "alpha is not stated; 16, as in re-implementations."),
            _row("mtl", f"One LoRA on all tasks. {SAME}", trains="lora"),
        ),
        protocol="slao",
        tolerance=4.0,
        tolerance_reason=(
            "No spread is known, and the figures are second hand. 4 points is how far two groups' runs of one O-LoRA row "
            "are apart on a single order (AM-LoRA's and MIGU's tables)."
        ),
        unknown=(
            "alpha, dropout and optimizer are not stated.",
            "Which orders the SuperNI column averages is not confirmed; sni-1 and sni-2 here.",
            "CorDA, KnOTS, LoRA-LEGO and OPCM are not in raycl; their rows are left out.",
        ),
    ),
)
