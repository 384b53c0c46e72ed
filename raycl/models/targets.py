"""The modules that get adapters where nobody names any: query and value projections, found by structure.

An attention block is a module whose linear children say by their names that one makes queries and another keys or values
(`q_proj`, `query`, `Wq`, `kv_b_proj`), or one child all three (`qkv_proj`, `query_key_value`, `Wqkv`). Where names say
nothing (GPT-2's `c_attn`), the shapes do: beside a projection that reads all heads, of heads * head_dim features, stands one
that writes (heads + 2 * kv_heads) * head_dim. No list of model types is needed, and what no forward pass calls is passed by.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from raycl.adapters.carriers import widths

WORDS = {"query": "q", "key": "k", "value": "v"}
"""Parts of names that are spelt out."""


def query_and_value(model: Any, called: Collection[str]) -> tuple[str, ...]:
    """What adapts the query and value projections among the linear modules `called`: their last names, or, where those would
    name other modules too, their paths; none where the model has no attention that can be recognised."""
    blocks = _children(model, called)
    spoken = {type(model.get_submodule(path)) for path, block in blocks.items() if _is_attention(block)}
    found: list[str] = []
    for path, block in blocks.items():
        module = model.get_submodule(path)
        if type(module) in spoken:
            names = [name for name in block if _roles(name) & {"q", "v"}]
        else:
            names = list(_fused(path, module, block, model.config))
        found += [f"{path}.{name}".lstrip(".") for name in names]
    return _shortest(model, found)


def _children(model: nn.Module, called: Collection[str]) -> dict[str, dict[str, nn.Module]]:
    """The called linear modules by the path of the module that holds them, and by their names in it."""
    blocks: dict[str, dict[str, nn.Module]] = {}
    for path in called:
        parent, _, name = path.rpartition(".")
        blocks.setdefault(parent, {})[name] = model.get_submodule(path)
    return blocks


def _is_attention(block: Collection[str]) -> bool:
    """Whether the names of a module's linear children speak of queries, and of keys or values."""
    roles = set[str]().union(*map(_roles, block))
    return "q" in roles and bool(roles & {"k", "v"})


def _roles(name: str) -> set[str]:
    """What a projection makes, by its name: of q, k and v those that a part of it stands for. A z is a fused gate."""
    roles: set[str] = set()
    for part in re.split(r"[^a-zA-Z]+", re.sub(r"^W(?=[a-z])", "", name)):
        short = WORDS.get(part.lower(), part.lower())
        roles |= set(short) - {"z"} if re.fullmatch(r"[qkv]+z?", short) else set()
    return roles


def _fused(path: str, module: nn.Module, block: Mapping[str, nn.Module], config: Any) -> Iterator[str]:
    """The fused projection of a module that is called attention, where its shape and its neighbour's leave no doubt."""
    called = f"{path.rpartition('.')[2]} {type(module).__name__}".lower()
    if "attn" not in called and "attention" not in called:
        return
    heads = getattr(config.get_text_config(), "num_attention_heads", 0)
    for name, fused in block.items():
        others = [widths(one) for other, one in block.items() if other != name]
        source, made = widths(fused)
        if any(back == source and holds_all(made, features, heads) for features, back in others):
            yield name


def holds_all(made: int, features: int, heads: Any) -> bool:
    """Whether `made` features are the queries of all heads, `features`, with the keys and values of some or all of them."""
    if not isinstance(heads, int) or heads <= 0 or features % heads:
        return False
    width = 2 * (features // heads)
    return features < made <= 3 * features and (made - features) % width == 0


def _shortest(model: nn.Module, paths: Collection[str]) -> tuple[str, ...]:
    """The last names of `paths` if they name those modules alone, else the paths."""
    last = {path.rpartition(".")[2] for path in paths}
    named = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in last}
    return tuple(sorted(last)) if named == set(paths) else tuple(paths)
