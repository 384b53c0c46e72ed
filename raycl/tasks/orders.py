"""Task orders by id, and the benchmarks they belong to.

The papers number their orders differently: GainLoRA's Orders 1 and 2 are SuperNI orders (here sni-1, sni-2), while
O-LoRA's and AM-LoRA's Orders 1 to 3 are orders of four tasks (std-1 to std-3). GainLoRA's Order 3 is AM-LoRA's Order 6
(long-6), and only Order 4 (long-4) is the same in both; SAPT's scripts call long-6 "4" and long-4 "5".
A bare number here means AM-LoRA's Table 4; logs and tables should always show the id.
"""

from __future__ import annotations

import difflib
import re

from raycl.errors import SpecError
from raycl.tasks.catalogue import TASKS


def _tasks(names: str) -> tuple[str, ...]:
    """Task names set apart by spaces."""
    return tuple(names.split())


def _task_of_number(number: int) -> str:
    """The SuperNI task with this number."""
    return next(name for name in TASKS if name.startswith(f"task{number:03d}_"))


def _number(name: str) -> str:
    """The number of a SuperNI task: `task1572` of `task1572_samsum_summary`."""
    return name.partition("_")[0]


_SNI_1 = (1572, 363, 1290, 181, 2, 1510, 639, 1729, 73, 1590, 748, 511, 591, 1687, 875)
_SNI_2 = (748, 73, 1590, 639, 1572, 1687, 591, 363, 1510, 1729, 181, 511, 2, 1290, 875)

ORDERS: dict[str, tuple[str, ...]] = {
    "std-1": ("dbpedia", "amazon", "yahoo", "agnews"),
    "std-2": ("dbpedia", "amazon", "agnews", "yahoo"),
    "std-3": ("yahoo", "amazon", "agnews", "dbpedia"),
    "long-4": _tasks("mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo"),
    "long-5": _tasks("multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo"),
    "long-6": _tasks("yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolq wic"),
    "sni-1": tuple(_task_of_number(number) for number in _SNI_1),
    "sni-2": tuple(_task_of_number(number) for number in _SNI_2),
    "demo": ("roget", "snippets", "plots", "speakers"),
}
"""Order id -> canonical task names, first to last."""

NUMBERED: dict[str, str] = {"1": "std-1", "2": "std-2", "3": "std-3", "4": "long-4", "5": "long-5", "6": "long-6"}
"""AM-LoRA's order numbers (its Table 4) -> order id."""

DEFAULT_ORDER = "demo"
"""The order of a run that names none."""

CUSTOM = "custom:"
"""How the id of an order of one's own begins."""

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "standard-cl": ("yelp", "amazon", "dbpedia", "yahoo", "agnews"),
    "long": ORDERS["long-6"],
    "superni": tuple(name for name, info in TASKS.items() if info.suite == "superni"),
    "demo": ORDERS["demo"],
}
"""Benchmark name -> its tasks. The standard suite holds yelp, though none of its orders uses it."""

_OTHER_NAMES = {
    "boolqa": "boolq",
    "dbpedia14": "dbpedia",
    "yahooanswers": "yahoo",
    "yahooanswerstopics": "yahoo",
    "yelpreviewfull": "yelp",
}


def _plain(name: str) -> str:
    """A name without case, punctuation and spaces: `SST-2` and `sst2` are the same."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


_BY_PLAIN_NAME = {_plain(name): name for name in TASKS} | _OTHER_NAMES


def canonical_task(name: str) -> str | None:
    """The canonical name for a name, an alias or a SuperNI number (`SST-2`, `boolqa`, `task1572`, `073`); else None."""
    plain = _plain(name)
    if plain in _BY_PLAIN_NAME:
        return _BY_PLAIN_NAME[plain]
    match = re.fullmatch(r"(?:task)?([0-9]{1,6})", plain)
    prefix = f"task{int(match[1]):03d}_" if match else None
    return next((known for known in TASKS if prefix and known.startswith(prefix)), None)


def resolve_order(text: str) -> tuple[str, tuple[str, ...]]:
    """The id and the tasks of an order given as an id, a number 1 to 6, or a comma list of task names.

    A comma list gets the id `custom:` + its canonical names. Raises SpecError for anything unknown.
    """
    wanted = text.strip()
    order = NUMBERED.get(wanted, wanted.casefold())
    if order in ORDERS:
        return order, ORDERS[order]
    names = [part.strip() for part in order_words(wanted).split(",")]
    tasks = [canonical_task(name) for name in names]
    unknown = [name for name, task in zip(names, tasks, strict=True) if task is None]
    if unknown:
        raise SpecError(_unknown(text, unknown))
    found = tuple(task for task in tasks if task is not None)
    return CUSTOM + ",".join(found), found


def _unknown(text: str, unknown: list[str]) -> str:
    """The message for an order with unknown parts."""
    close = [match for name in unknown if (match := _nearest(name))]
    guess = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    return (
        f"order: {text!r} is not known (unknown: {', '.join(map(repr, unknown))}){guess}\n"
        f"  allowed: an id ({', '.join(ORDERS)}), a number 1 to 6 (AM-LoRA's orders), or tasks joined by commas\n"
        f"  tasks: {', '.join(name for name, info in TASKS.items() if info.suite != 'superni')}, "
        f"or one of the {len(BENCHMARKS['superni'])} SuperNI tasks by name or number "
        f"({', '.join(map(_number, BENCHMARKS['superni']))}; docs/orders-and-data.md has the names)\n"
        "  next step: choose one of these, e.g. `--order std-1` or `--order dbpedia,amazon`"
    )


def _nearest(name: str) -> str | None:
    """The known order id or task nearest to a misspelt name."""
    known = [*ORDERS, *TASKS]
    matches = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.5)
    return matches[0] if matches else None


def order_title(order: str) -> str:
    """An order's id as a heading: a name, or the tasks of one's own order; of more than four the first and the last."""
    if not order.startswith(CUSTOM):
        return order
    tasks = order_words(order).split(",")
    named = tasks if len(tasks) <= 4 else [*tasks[:2], "...", f"{tasks[-1]} ({len(tasks)} tasks)"]
    return ", ".join(named)


def order_words(order: str) -> str:
    """An order's id as a user writes it: a name, or the tasks of an order of one's own."""
    return order.removeprefix(CUSTOM)
