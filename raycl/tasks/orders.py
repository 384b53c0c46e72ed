"""Task orders by id, number or list of tasks.

The papers number their orders differently: GainLoRA's Orders 1 and 2 are SuperNI orders (here sni-1, sni-2), while
O-LoRA's and AM-LoRA's Orders 1 to 3 are orders of four tasks (std-1 to std-3). GainLoRA's Order 3 is AM-LoRA's Order 6
(long-6), and only Order 4 (long-4) is the same in both; SAPT's scripts call long-6 "4" and long-4 "5".
A bare number here means AM-LoRA's Table 4; logs and tables should always show the id.
"""

from __future__ import annotations

import difflib

from raycl.errors import SHOWN, SpecError, shown, some
from raycl.tasks.catalogue import Catalogue, open_catalogue
from raycl.tasks.stream import Published

NUMBERED: dict[str, str] = {"1": "std-1", "2": "std-2", "3": "std-3", "4": "long-4", "5": "long-5", "6": "long-6"}
"""AM-LoRA's order numbers (its Table 4) -> order id."""

DEFAULT_ORDER = "demo"
"""The order of a run that names neither an order nor a stream."""

CUSTOM = "custom:"
"""How the id of an order of one's own begins."""


def resolve_order(text: str | None, stream: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The id and the tasks of an order given as an id, a number 1 to 6, or a comma list of task names.

    `stream` is the path of the user's stream, whose orders and tasks come before the built-in ones; `text` none means its
    default order, or the demo. A comma list gets the id `custom:` + its canonical names. Raises SpecError for anything
    unknown.
    """
    known = open_catalogue(stream)
    if text is None and known.own:
        return known.own.stream, known.orders[known.own.stream]
    wanted = (DEFAULT_ORDER if text is None else text).strip()
    prefixed = f"{known.own.stream}/{wanted}" if known.own else wanted
    for order in (prefixed, wanted, NUMBERED.get(wanted, wanted.casefold())):
        if order in known.orders:
            return order, known.orders[order]
    names = [part.strip() for part in order_words(wanted).split(",")]
    tasks = [known.canonical(name) for name in names]
    unknown = [name for name, task in zip(names, tasks, strict=True) if task is None]
    if unknown:
        raise SpecError(_unknown(text or "", unknown, known))
    found = tuple(task for task in tasks if task is not None)
    return CUSTOM + ",".join(found), found


def _unknown(text: str, unknown: list[str], known: Catalogue) -> str:
    """The message for an order with unknown parts."""
    names = [*known.orders, *known.tasks]
    close = [match for name in unknown[:SHOWN] if (match := _nearest(name, names))]
    guess = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    numbers = [name.partition("_")[0] for name in known.tasks if _is_superni(known, name)]
    return (
        f"order: {shown(text)} is not known (unknown: {some(map(shown, unknown))}){guess}\n"
        f"  allowed: an id ({', '.join(known.orders)}), a number 1 to 6 (AM-LoRA's orders), or tasks joined by commas\n"
        f"  tasks: {', '.join(name for name in known.tasks if not _is_superni(known, name))}, "
        f"or one of the {len(numbers)} SuperNI tasks by name or number "
        f"({', '.join(numbers)}; docs/orders-and-data.md has the names)\n"
        "  next step: choose one of these, e.g. `--order std-1` or `--order dbpedia,amazon`; tasks of your own come from "
        "`--stream FILE`"
    )


def _is_superni(known: Catalogue, name: str) -> bool:
    data = known.tasks[name].data
    return isinstance(data, Published) and data.suite == "superni"


def _nearest(name: str, known: list[str]) -> str | None:
    """The known order id or task nearest to a misspelt name."""
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
