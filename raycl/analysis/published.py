"""Figures of the papers' own tables, for orientation. They are borrowed: other models, data and budgets, never raycl's.

Baselines differ by 20 points and more between papers that name the same setting, so nothing here is a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Borrowed:
    """One published table, or the part of one that concerns methods in raycl."""

    source: str
    """Paper and table."""
    setting: str
    """Model, benchmark, measure."""
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | str | None, ...]]
    """Row of the table -> values in the order of `columns`; the row's name begins with the method's name in raycl."""
    second_hand: bool = False
    """Whether the figures were taken from later papers and digests, not from the paper itself."""


_SUITE = ("std-1", "std-2", "std-3", "std mean", "long-4", "long-5", "long-6", "long mean")

TABLES = (
    Borrowed(
        "AM-LoRA (arXiv 2409.19611), table 1",
        "T5-Large, standard and long suite, AP (exact match)",
        _SUITE,
        {
            "seq_ft": (18.9, 24.9, 41.7, 28.5, 7.4, 7.4, 7.5, 7.4),
            "sin_lora": (44.6, 32.7, 53.7, 43.7, 2.3, 0.6, 1.9, 1.6),
            "inc_lora": (66.0, 64.9, 68.3, 66.4, 63.3, 58.5, 61.7, 61.2),
            "replay": (55.2, 56.9, 61.3, 57.8, 55.0, 54.6, 53.1, 54.2),
            "ewc": (48.7, 47.7, 54.5, 50.3, 45.3, 44.5, 45.6, 45.1),
            "l2p": (60.3, 61.7, 61.1, 60.7, 57.5, 53.8, 56.9, 56.1),
            "lfpt5": (67.6, 72.6, 77.9, 72.7, 70.4, 68.2, 69.1, 69.2),
            "o_lora": (75.4, 75.7, 76.3, 75.8, 72.3, 64.8, 71.6, 69.6),
            "am_lora": (78.1, 79.8, 76.2, 78.0, 72.7, 73.3, 71.8, 72.6),
            "prog_prompt": (75.2, 75.0, 75.1, 75.1, 78.0, 77.7, 77.9, 77.9),
            "per_task": (70.0, 70.0, 70.0, 70.0, 78.1, 78.1, 78.1, 78.1),
            "mtl": (80.0, 80.0, 80.0, 80.0, 76.5, 76.5, 76.5, 76.5),
        },
    ),
    Borrowed(
        "AM-LoRA (arXiv 2409.19611), table 2",
        "Llama-2-7B, standard suite, AP (exact match)",
        _SUITE[:4],
        {
            "inc_lora": (74.5, 71.2, 72.9, 72.8),
            "o_lora": (76.8, 75.7, 75.7, 76.1),
            "am_lora": (78.8, 78.5, 78.4, 78.6),
            "mtl": (None, None, None, 77.1),
        },
    ),
    Borrowed(
        "MIGU, table 8 (its own re-runs)",
        "T5-Large, AP (exact match): mean of std-1..3, mean of long-4..6",
        ("std mean", "long mean"),
        {
            "seq_ft": (75.7, 68.3),
            "migu over seq_ft": (78.8, 73.8),
            "sin_lora": (67.9, 46.0),
            "migu over sin_lora": (73.3, 61.2),
            "inc_lora": (68.8, 64.7),
            "migu over inc_lora": (76.4, 68.7),
            "o_lora": (76.6, 69.5),
            "migu over o_lora": (76.6, 70.0),
            "replay (LoRA, 2 %)": (74.5, 75.2),
        },
        second_hand=True,
    ),
    Borrowed(
        "GainLoRA (arXiv 2505.15424), main table",
        "T5-Large, AP / FT: SuperNI orders (ROUGE-L), long orders (exact match)",
        ("sni-1", "sni-2", "long-6", "long-4"),
        {
            "ewc": ("15.32 / 26.78", "18.19 / 30.28", "43.24 / 23.66", "46.25 / 32.90"),
            "sin_lora": ("7.30 / 47.60", "7.03 / 47.97", "49.46 / 27.60", "33.81 / 45.53"),
            "inc_lora": ("12.33 / 41.93", "16.65 / 36.56", "61.19 / 13.63", "62.46 / 15.92"),
            "c_lora": ("22.69 / 24.25", "32.81 / 11.60", "66.83 / 8.64", "61.86 / 14.18"),
            "o_lora": ("26.37 / 19.15", "32.83 / 11.99", "70.98 / 3.69", "71.21 / 4.03"),
            "gain_lora over o_lora": ("47.84 / 2.26", "46.84 / 2.91", "73.37 / 3.02", "76.01 / 2.49"),
            "inf_lora": ("39.78 / 7.64", "39.57 / 8.93", "75.15 / 4.19", "75.79 / 3.47"),
            "gain_lora over inf_lora": ("46.21 / 2.40", "46.44 / 2.61", "78.01 / 0.77", "77.54 / 1.20"),
        },
        second_hand=True,
    ),
    Borrowed(
        "GainLoRA (arXiv 2505.15424), Llama table",
        "AP / FT on SuperNI (ROUGE-L): Llama-2-7B, Llama-2-13B, Llama-3-8B",
        ("2-7B sni-1", "2-7B sni-2", "2-13B sni-1", "2-13B sni-2", "3-8B sni-1", "3-8B sni-2"),
        {
            "o_lora": (
                *("39.37 / 15.84", "37.55 / 20.23", "43.92 / 14.15"),
                *("40.05 / 19.53", "42.49 / 8.85", "38.67 / 19.28"),
            ),
            "gain_lora over o_lora": (
                *("51.10 / 4.96", "51.14 / 5.57", "52.47 / 4.78"),
                *("51.68 / 5.86", "53.39 / 3.56", "51.69 / 6.20"),
            ),
            "inf_lora": (
                *("42.93 / 11.23", "39.94 / 15.00", "43.64 / 14.85"),
                *("45.74 / 10.61", "43.27 / 6.02", "48.77 / 5.88"),
            ),
            "gain_lora over inf_lora": (
                *("51.27 / 2.84", "50.17 / 4.71", "53.64 / 2.87"),
                *("52.46 / 4.90", "52.18 / 1.40", "52.48 / 4.21"),
            ),
        },
        second_hand=True,
    ),
    Borrowed(
        "GainLoRA (arXiv 2505.15424), ablation of the constraints",
        "AP / FT on SuperNI: T5-Large, Llama-2-7B",
        ("T5 sni-1", "T5 sni-2", "Llama sni-1", "Llama sni-2"),
        {
            "gain_lora over o_lora": ("47.84 / 2.26", "46.84 / 2.91", "51.10 / 4.96", "51.14 / 5.57"),
            "gain_lora over o_lora, no init constraint": (
                "35.30 / 17.19",
                "39.82 / 12.90",
                "44.02 / 11.71",
                "42.89 / 14.77",
            ),
            "gain_lora over o_lora, no update constraint": (
                "23.01 / 30.32",
                "24.96 / 28.14",
                "33.74 / 23.06",
                "34.71 / 22.36",
            ),
            "gain_lora over o_lora, neither constraint": (
                "26.32 / 26.00",
                "30.63 / 22.37",
                "34.48 / 23.46",
                "36.87 / 21.24",
            ),
            "gain_lora over inf_lora": ("46.21 / 2.40", "46.44 / 2.61", "51.27 / 2.84", "50.17 / 4.71"),
            "gain_lora over inf_lora, no init constraint": (
                "45.38 / 3.40",
                "43.05 / 5.15",
                "50.48 / 3.48",
                "48.17 / 6.45",
            ),
            "gain_lora over inf_lora, no update constraint": (
                "37.69 / 10.94",
                "38.85 / 9.31",
                "48.52 / 5.68",
                "47.85 / 7.00",
            ),
            "gain_lora over inf_lora, neither constraint": (
                "36.75 / 12.18",
                "41.00 / 6.66",
                "49.10 / 6.07",
                "45.77 / 8.70",
            ),
        },
        second_hand=True,
    ),
    Borrowed(
        "SLAO, main table",
        "Llama-2-7B-chat, average accuracy: standard, long, SuperNI; and BWT on the long suite",
        ("standard", "long", "SuperNI", "BWT long"),
        {
            "sin_lora": (76.0, 68.7, 22.6, -17.2),
            "inc_lora": (77.0, 72.5, 23.8, -9.6),
            "o_lora": (77.2, 73.5, 25.9, -4.0),
            "inf_lora": (79.6, 69.8, 19.3, -4.9),
            "sapt_lora": (81.1, 81.9, 50.9, -2.9),
            "merging (MagMax)": (80.3, 73.4, 11.2, -3.8),
            "slao": (80.4, 74.8, 37.2, -3.5),
            "mtl": (80.9, 78.1, 45.2, None),
        },
        second_hand=True,
    ),
    Borrowed(
        "TreeLoRA, its runs of TRACE",
        "Llama-2-7B-chat, TRACE: OP / forgetting",
        ("OP", "forgetting"),
        {"tree_lora": (43.52, 3.46), "o_lora": (42.78, 7.16)},
        second_hand=True,
    ),
    Borrowed(
        "O-LoRA (arXiv 2310.14152)",
        "T5-Large, AP (exact match): mean of std-1..3, mean of long-4..6",
        ("std mean", "long mean"),
        {"lwf": (52.3, 46.9)},
        second_hand=True,
    ),
    *(
        Borrowed(
            source,
            "T5-Large, AP (exact match): mean of std-1..3, mean of long-4..6",
            ("std mean", "long mean"),
            {method: means},
            second_hand=True,
        )
        for source, method, means in (
            ("ELLA (arXiv 2601.02232), one epoch a task", "ella", (79.9, 73.6)),
            ("N-LoRA (arXiv 2410.10179), ten epochs a task on the standard suite", "n_lora", (78.8, 72.4)),
            ("OSFT (arXiv 2504.07097), the low directions themselves (`form=full`)", "osf", (75.9, 71.3)),
        )
    ),
)


def tables_of(method: str) -> list[Borrowed]:
    """The tables in which a method has rows, reduced to these rows."""
    found = []
    for table in TABLES:
        rows = {name: values for name, values in table.rows.items() if name.split(" ")[0].rstrip(",") == method}
        if rows:
            found.append(Borrowed(table.source, table.setting, table.columns, rows, table.second_hand))
    return found
