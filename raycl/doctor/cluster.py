"""Ray: the cluster at hand, and whether its nodes see the store."""

from __future__ import annotations

from raycl.doctor.finding import Finding, Places
from raycl.doctor.patience import within
from raycl.doctor.storage import store_place
from raycl.errors import StoreError, first_line

RAY_SECONDS = 90.0
"""Longest wait for a cluster that takes the connection."""
CHECK = "store on nodes"


def ray(places: Places) -> Finding:
    """The cluster that a run would join, or that none is at hand."""
    try:
        from raycl.cluster import address_at_hand, answers, attach, nodes, token_mode
    except ImportError as error:
        return Finding("ray", "warning", f"cannot be imported ({error})", "`make setup`; or run with --workers 0")
    address = address_at_hand()
    if address is None:
        return Finding("ray", "ok", f"no cluster at hand: a run with workers starts one here; {token_mode()}")
    fix = "start it (`ray start --head`), correct or unset RAY_ADDRESS, or run with --workers 0"
    if not answers(address):
        return Finding("ray", "failed", f"{address}: nobody answers", fix)
    try:
        joined = within(RAY_SECONDS, attach)
    except Exception as error:  # Ray raises errors of its own for each way to fail
        return Finding(
            "ray",
            "failed",
            f"{address}: {type(error).__name__}: {first_line(error)[:200]}; {token_mode()}",
            f"{fix}; a cluster with tokens needs RAY_AUTH_MODE=token and its token in ~/.ray/auth_token or RAY_AUTH_TOKEN",
        )
    if not joined:
        return Finding("ray", "warning", f"{address}: a note of a cluster that is gone", "`ray stop` clears it")
    machines = nodes()
    cpus, gpus = (int(sum(node.get(kind, 0) for node in machines)) for kind in ("CPU", "GPU"))
    return Finding("ray", "ok", f"{address}: {len(machines)} nodes, {cpus} CPUs, {gpus} GPUs; {token_mode()}")


def store_on_nodes(places: Places) -> Finding | None:
    """Whether all nodes of the cluster that `ray` has joined see what this process writes to the store; none where it has
    joined none of several nodes, or no store is given."""
    if places.store is None:
        return None
    try:
        from raycl.cluster import joined, nodes, on_each_node
    except ImportError:
        return None
    # Not joined here: a cluster that does not answer was found by `ray`, within its patience.
    if not joined() or len(nodes()) < 2:
        return None
    from raycl.state.probe import Probe

    try:
        with Probe.left(store_place(places)) as probe:
            seen = on_each_node(probe.seen, RAY_SECONDS)
    except StoreError as error:
        return Finding(CHECK, "failed", first_line(error), "give a store that can be written: --store")
    blind = {node: answer for node, answer in seen.items() if answer is not True}
    if not blind:
        return Finding(CHECK, "ok", f"all {len(seen)} nodes see {probe.uri}")
    words = "; ".join(
        f"{node}: {first_line(answer)[:200] if isinstance(answer, Exception) else 'does not see it'}"
        for node, answer in blind.items()
    )
    return Finding(
        CHECK,
        "failed",
        f"{len(blind)} of {len(seen)} nodes do not see {probe.uri}: {words}",
        "give a store that every node reaches: a folder mounted at the same path on all of them, or a URI (s3://...); "
        "and install the same raycl on every node",
    )
