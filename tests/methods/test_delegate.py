"""A method around another one hands on every hook, also those that the contract gains later."""

from __future__ import annotations

import inspect
from typing import Any, Literal
from unittest.mock import MagicMock, call, create_autospec

import pytest
from pydantic import Field

from raycl.methods.common.base import About, Method, StageInfo
from raycl.methods.common.delegate import Wrapping
from raycl.methods.registry import METHODS, method_class
from raycl.spec import MethodParams
from raycl.testing.probes import make_method
from tests.kit.cases import CASES

OF_THE_CLASS = {"Params", "about", "version", "needs_task_id", "joint", "chooses", "settings"}
"""What stands on the class: part of what the outer method is, and not passed through."""
HOOKS = sorted(name for name in vars(Method) if not name.startswith("_") and name not in OF_THE_CLASS)
WRAPPING = sorted(name for name in METHODS if issubclass(method_class(name), Wrapping))


class BareParams(MethodParams):
    """No hyper-parameters."""

    name: Literal["bare"] = Field(default="bare", description="nothing of its own")


class Inner(Method[BareParams]):
    """Stands in for any method; its hooks are replaced by mocks."""

    install = consolidate = serve = remove = lambda self, *args: None  # type: ignore[assignment]

    @classmethod
    def carries(cls, params: BareParams) -> Any:
        """An answer that no default gives."""
        return ("carries", params)

    @classmethod
    def alone(cls, params: BareParams) -> Any:
        """An answer that no default gives."""
        return ("alone", params)

    @classmethod
    def in_peft(cls, params: BareParams) -> Any:
        """An answer that no default gives."""
        return ("in_peft", params)

    @classmethod
    def takes(cls, params: BareParams) -> Any:
        """An answer that no default gives."""
        return ("takes", params)

    @classmethod
    def passes(cls, params: BareParams) -> Any:
        """An answer that no default gives."""
        return ("passes", params)


class Bare(Wrapping[BareParams, Inner]):
    """A wrapping with nothing of its own."""

    Params = BareParams
    about = About("nothing", "none", "what the inner method trains", "none")

    @classmethod
    def inner_class(cls, params: BareParams) -> type[Inner]:
        """The stand-in."""
        return Inner


def wrapped() -> tuple[Bare, MagicMock]:
    """A wrapping and the mock inside it."""
    outer = Bare(BareParams(), StageInfo(1, 1, "toy", 0))
    assert type(outer.inner) is Inner and (outer.inner.params, outer.inner.info) == (outer.params, outer.info)
    inner = create_autospec(Inner, instance=True)
    outer.inner = inner
    return outer, inner


def test_the_hooks_are_those_of_the_contract() -> None:
    """The walk below sees the whole contract: some of its hooks of each kind are among them."""
    assert {"install", "examples", "observes", "follows_gradients", "soft_prompt", "running", "carries"} <= set(HOOKS)
    assert all(name in vars(Method) or name in Method.__annotations__ for name in OF_THE_CLASS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_goes_to_the_inner_method(hook: str) -> None:
    """With nothing of its own, the outer method gives what the inner one gives, called with the same arguments."""
    outer, inner = wrapped()
    declared = inspect.getattr_static(Method, hook)
    if isinstance(declared, classmethod):
        assert getattr(outer, hook)(outer.params) == (hook, outer.params)
        return
    if isinstance(declared, property):
        setattr(inner, hook, answer := object())
        assert getattr(outer, hook) is answer, f"Wrapping does not hand on {hook}"
        return
    given = [object() for _ in list(inspect.signature(declared).parameters)[1:]]
    getattr(outer, hook)(*given)
    assert getattr(inner, hook).call_args_list == [call(*given)], f"Wrapping does not hand on {hook}"
    if inspect.signature(declared).return_annotation != "None":
        assert getattr(outer, hook)(*given) is getattr(inner, hook).return_value


def test_gradients_go_only_to_a_method_that_follows_them() -> None:
    """The outer method may follow gradients for itself alone."""
    outer, inner = wrapped()
    inner.follows_gradients = False
    outer.gradients(MagicMock())
    assert not inner.gradients.called


def test_registered_methods_around_others_are_known() -> None:
    """Whoever holds an inner method does it by `Wrapping`."""
    assert WRAPPING == ["gain_lora", "migu"]
    for case in CASES.values():
        assert hasattr(make_method(case.params), "inner") == (case.params["name"] in WRAPPING)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.params["name"] in WRAPPING])
def test_what_is_declared_follows_the_inner_method(name: str) -> None:
    """A wrapped method carries what its inner one carries, and sees gradients where that one does."""
    for stage in (1, 2):
        method = make_method(CASES[name].params, stage)
        assert type(method).carries(method.params) == type(method.inner).carries(method.params)
        assert method.follows_gradients or not method.inner.follows_gradients
        assert method.pass_examples == method.inner.pass_examples


def test_the_tokens_of_a_pass_are_the_inner_methods(tiny, toy_tasks, run_stage):
    """Gates over InfLoRA learn their subspaces from the rows that its layers are read on."""
    params = CASES["gain_lora_over_inf"].params | {"tokens_per_dim": 1}
    result = run_stage(tiny, params, toy_tasks)
    assert result.method.pass_tokens == result.method.inner.pass_tokens == 48
