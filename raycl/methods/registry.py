"""The methods by name. Adding one to raycl is one file in this folder and one line here.

A name is one of this table, the entry point of an installed package, or `package.module:Class` (`raycl/methods/outside.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from raycl.errors import did_you_mean
from raycl.files import Json
from raycl.methods import outside
from raycl.methods.outside import Outside

if TYPE_CHECKING:
    from raycl.methods.common.base import Method, StageInfo
    from raycl.spec import MethodParams

METHODS = {
    "seq_ft": "raycl.methods.seq_ft:SeqFt",
    "sin_lora": "raycl.methods.sin_lora:SinLora",
    "inc_lora": "raycl.methods.inc_lora:IncLora",
    "wise": "raycl.methods.wise:Wise",
    "replay": "raycl.methods.replay:Replay",
    "ewc": "raycl.methods.ewc:Ewc",
    "ogd": "raycl.methods.ogd:Ogd",
    "gem": "raycl.methods.gem:Gem",
    "mbpa": "raycl.methods.mbpa:Mbpa",
    "o_lora": "raycl.methods.o_lora:OLora",
    "am_lora": "raycl.methods.am_lora:AmLora",
    "lorac": "raycl.methods.lorac:Lorac",
    "c_lora": "raycl.methods.c_lora:CLora",
    "ella": "raycl.methods.ella:Ella",
    "n_lora": "raycl.methods.n_lora:NLora",
    "osf": "raycl.methods.osf:Osf",
    "inf_lora": "raycl.methods.inf_lora:InfLora",
    "gain_lora": "raycl.methods.gain_lora:GainLora",
    "slao": "raycl.methods.slao:Slao",
    "self_distill": "raycl.methods.self_distill:SelfDistill",
    "lwf": "raycl.methods.lwf:Lwf",
    "sapt_lora": "raycl.methods.sapt_lora:SaptLora",
    "route_lora": "raycl.methods.route_lora:RouteLora",
    "migu": "raycl.methods.migu:Migu",
    "l2p": "raycl.methods.l2p:L2p",
    "lfpt5": "raycl.methods.lfpt5:Lfpt5",
    "prog_prompt": "raycl.methods.prog_prompt:ProgPrompt",
    "merging": "raycl.methods.merging:Merging",
    "tree_lora": "raycl.methods.tree_lora:TreeLora",
    "per_task": "raycl.methods.per_task:PerTask",
    "mtl": "raycl.methods.mtl:Mtl",
}


def method_class(name: str) -> type[Method]:
    """The class of a method. Raises ValueError that says what is wrong with a name, or with the method that it names."""
    if found := outside_method(name):
        return found.method
    if name not in METHODS:
        known = [*METHODS, *outside.installed()]
        raise ValueError(
            f"unknown method{did_you_mean(name, known)}; allowed: {', '.join(known)}, or package.module:Class"
        )
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)


def outside_method(name: str) -> Outside | None:
    """The method of a name from outside of raycl, imported; none for one of raycl's own and for an unknown name.

    Raises ValueError as `method_class`.
    """
    if ":" in name:
        return outside.at(name)
    claimed = outside.claimed(name, METHODS)
    return outside.at(claimed.place, name) if claimed else None


def identity(name: str) -> Json:
    """What keys hold of an outside method beside its settings: its class, and the hash of its source; {} for raycl's own.

    Raises ValueError as `method_class`, and if the source has changed since it was imported.
    """
    found = outside_method(name)
    return {"name": found.place, "source": found.unchanged_source()} if found else {}


def folders(names: Iterable[str]) -> list[str]:
    """Where the methods of these names from outside of raycl lie: other processes that run them must `reach` it.

    Raises ValueError as `method_class`.
    """
    return sorted({str(found.folder) for name in names if (found := outside_method(name))})


def is_known(name: str) -> bool:
    """Whether raycl or an installed package has a method of this name."""
    return name in METHODS or name in outside.installed()


def short_name(name: str) -> str:
    """What tables, runs and folders call a method: its name, or the class of `package.module:Class`."""
    return name.rpartition(":")[2]


def method_params(name: str) -> type[MethodParams]:
    """The hyper-parameter model of a method."""
    return method_class(name).Params


def build(params: MethodParams, info: StageInfo) -> Method:
    """A method object for one stage (or for serving a state)."""
    return method_class(params.name)(params, info)
