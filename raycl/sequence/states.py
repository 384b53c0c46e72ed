"""Stage states put together from the store, with what is likely to be asked for next kept in memory."""

from __future__ import annotations

from raycl.methods.registry import method_class
from raycl.spec import RunSpec
from raycl.state.stage_state import StagePart, StageState
from raycl.state.store import Store


class States:
    """The states of one sequence, each named by the keys of the stages that make it up (`Cell.state`)."""

    def __init__(self, store: Store, spec: RunSpec) -> None:
        self.store = store
        self.last_only = method_class(spec.method.name).carries(spec.method) == "last"
        self._chain: tuple[str | None, StageState] = (None, StageState())
        """The newest chain that was read: a next stage need not read its parents again."""
        self._parts: dict[str, StagePart] = {}
        """The parts of the newest state of stages that depend on no other."""

    def of(self, keys: tuple[str, ...]) -> StageState:
        """No key: the empty state; one: the chain that ends with it; several: their parts, in this order."""
        if len(keys) < 2:
            return self.chain(keys[0] if keys else None)
        self._parts = {key: self._parts.get(key) or self.store.read(key) for key in keys}
        return StageState(tuple(self._parts.values()))

    def chain(self, key: str | None) -> StageState:
        """The state after a stage, read along its parents; none = the empty state."""
        known, state = self._chain
        if known != key:
            if key is None:
                state = StageState()
            elif self.store.manifest(key).parent == known:
                state = state.append(self.store.read(key), self.last_only)
            else:
                state = self.store.read_state(key, self.last_only)
            self._chain = (key, state)
        return state
