"""The form of a reproduction: one published table or figure as rows of methods and columns of orders.

What a paper printed is not typed here: it is read from `raycl.analysis.published`. A row's settings are those that its
method knows as published (`Method.settings`), then the table's protocol, then the overrides that stand here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from raycl.analysis.published import TABLES, Borrowed
from raycl.fields import Strict
from raycl.files import Json

Measure = Literal["AP", "FT", "BWT", "AP by stage", "parameters"]
Scale = Literal["smoke", "paper"]


@dataclass(frozen=True)
class PaperModel:
    """A base model of the papers: its hub id, and what can be known of it without a download."""

    hub: str
    family: str
    """Its `model_type`."""
    parameters: float
    """Weights, for the estimate of cost."""
    width: int
    """Width d of the token embeddings."""
    adapted: tuple[tuple[int, int, int], ...]
    """The linear modules that get adapters by default (q and v): how many, d_in, d_out."""


MODELS = {
    "t5-large": PaperModel("google-t5/t5-large", "t5", 0.74e9, 1024, ((144, 1024, 1024),)),
    "llama-2-7b": PaperModel("meta-llama/Llama-2-7b-hf", "llama", 6.7e9, 4096, ((64, 4096, 4096),)),
    "llama-2-7b-chat": PaperModel("meta-llama/Llama-2-7b-chat-hf", "llama", 6.7e9, 4096, ((64, 4096, 4096),)),
    "llama-2-13b": PaperModel("meta-llama/Llama-2-13b-hf", "llama", 13.0e9, 5120, ((80, 5120, 5120),)),
    "llama-3-8b": PaperModel("meta-llama/Meta-Llama-3-8B", "llama", 8.0e9, 4096, ((32, 4096, 4096), (32, 4096, 1024))),
}
"""Base models by the name that the tables below use."""


class Column(Strict):
    """One column: a mean over one or more orders with one model."""

    label: str = Field(description="name of the column; the one in the borrowed table, if there is one")
    model: str = Field(description="name of the base model in MODELS")
    orders: tuple[str, ...] = Field(description="ids of the orders that the column averages", min_length=1)
    measures: tuple[Measure, ...] = Field(default=("AP",), description="what each cell of the column holds")


class Row(Strict):
    """One row: a method with its overrides."""

    label: str = Field(description="name of the row; the one in the borrowed table, if there is one")
    settings: Json = Field(description="run-spec fields, with at least method.name; they win over all published ones")
    own: bool = Field(
        default=False, description="keep the method's own published settings where the table has a protocol"
    )
    note: str = Field(default="", description="what is special or not known about this row")


class Reproduction(Strict):
    """One table or figure of a paper."""

    id: str = Field(description="paper/table", pattern=r"^[a-z_0-9]+/[a-z_0-9]+$")
    title: str
    published: str | None = Field(
        description="`source` of the table in raycl.analysis.published that holds the figures; none = no figure is known"
    )
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    protocol: str | None = Field(
        default=None, description="a method whose published optimisation, lengths and LoRA shape hold for every row"
    )
    seeds: int = Field(default=3, ge=1, description="runs that a cell averages: seeds 0, 1, ...")
    tolerance: float = Field(gt=0, description="points by which a measured cell may differ from the published one")
    tolerance_reason: str
    unknown: tuple[str, ...] = Field(default=(), description="what no source says, or says only second hand")

    @property
    def trains(self) -> bool:
        """Whether any cell needs training; parameter counts do not."""
        return any(measure != "parameters" for column in self.columns for measure in column.measures)

    @property
    def borrowed(self) -> Borrowed | None:
        """The published table."""
        if self.published is None:
            return None
        return next(table for table in TABLES if table.source == self.published)

    def expected(self, row: Row, column: Column) -> dict[str, float | None]:
        """The published value of each measure of a cell; none = not printed, or not known."""
        table = self.borrowed
        values = table.rows.get(row.label) if table else None
        if table is None or values is None:
            return dict.fromkeys(column.measures)
        value = values[table.columns.index(column.label)]
        parts = value.split(" / ") if isinstance(value, str) else [value]
        numbers = [None if part is None else float(part) for part in parts]
        return dict(zip(column.measures, numbers, strict=True))
