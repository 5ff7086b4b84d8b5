"""What the nodes of a cluster offer, what is waited for, and which nodes are refused."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from seedbed.types import UserError


def gpu_share(actors: int, gpus: float) -> float:
    """Actors share GPUs evenly, as few on one as possible: 4 actors on 2 GPUs get a half each."""
    per_gpu = -(-actors // max(int(gpus), 1))
    return 1.0 if per_gpu <= 1 else int(10_000 / per_gpu) / 10_000


def offered() -> dict[str, float]:
    """What the cluster's nodes have, or what its autoscaler may start: the larger of the two for each resource."""
    import ray

    have = dict(ray.cluster_resources())
    could: dict[str, float] = {}
    with suppress(Exception):  # not a public interface: without it only what is there counts
        could = dict(ray._private.state.state.get_max_resources_from_cluster_config() or {})
    for kind in _node_types():
        for name, amount in kind.items():
            could[name] = max(could.get(name, 0.0), amount)
    return {name: max(have.get(name, 0.0), could.get(name, 0.0)) for name in {*have, *could}}


def _node_types() -> list[dict[str, float]]:
    """Resources per node type, times its largest count, from the file that `ray up` leaves on a head node."""
    path = Path.home() / "ray_bootstrap_config.yaml"
    try:
        import yaml

        types = yaml.safe_load(path.read_text())["available_node_types"].values()
        return [{k: float(v) * int(t.get("max_workers", 1)) for k, v in (t.get("resources") or {}).items()} for t in types]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, ImportError):
        return []


def await_resources(
    least: list[dict[str, float]], wanted: list[dict[str, float]], deadline: float, say: Callable[[str], None], poll: float = 2.0
) -> None:
    """Returns when the bundles of `least` fit on the living nodes; until then asks the autoscaler for `wanted` and says so."""
    if fits(least, alive_totals()):
        return
    from ray.autoscaler.sdk import request_resources

    text = " + ".join(f"{v:g} {k}" for k, v in sorted(wanted[0].items()))
    could_be = offered()
    if any(could_be.get(name, 0.0) < amount * len(least) for name, amount in least[0].items()):
        raise UserError(
            f"the Ray cluster neither has nor can start room for {len(least)} x ({text})",
            field="--run.workers, --run.threads",
            remedy="ask for fewer workers or threads, or give the cluster more or larger nodes",
        )
    request_resources(bundles=wanted)
    begin = told = time.monotonic()
    say(f"waiting for nodes: {len(wanted)} x ({text}); giving up after {deadline / 60:.0f} min")
    while not fits(least, totals := alive_totals()):
        now = time.monotonic()
        if now - begin > deadline:
            request_resources(bundles=[])
            raise UserError(
                f"the Ray cluster did not offer {len(least)} x ({text}) within {deadline / 60:.0f} min; it has {totals}",
                field="--run.workers, --run.actors",
                remedy="look at `ray status` on the head node (quota, spot prices, setup commands), or ask for less",
            )
        if now - told > 60:
            told = now
            say(f"still waiting for {len(wanted)} x ({text}), {now - begin:.0f} s; {len(totals)} nodes are there")
        time.sleep(poll)
    request_resources(bundles=[])  # from here on the stages' own demand keeps them
    say(f"nodes are there after {time.monotonic() - begin:.0f} s")


def fits(bundles: list[dict[str, float]], nodes: list[dict[str, float]]) -> bool:
    """Whether equal bundles find room on nodes of these totals."""
    if not bundles:
        return True
    room = sum(int(min((n.get(name, 0.0) + 1e-6) // amount for name, amount in bundles[0].items() if amount)) for n in nodes)
    return room >= len(bundles)


def alive_totals() -> list[dict[str, float]]:
    import ray

    return [{k: v for k, v in n["Resources"].items() if k in ("CPU", "GPU")} for n in ray.nodes() if n["Alive"]]


def look_at_nodes(out: Path) -> int:
    """Number of living nodes. On several, every one must see the output folder and import the same Seedbed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [n for n in ray.nodes() if n["Alive"]]
    if len(nodes) < 2:
        return len(nodes)
    out.mkdir(parents=True, exist_ok=True)
    probe = out / f".probe-{uuid.uuid4().hex[:8]}"
    probe.write_text("seedbed")
    look = ray.remote(num_cpus=0, max_retries=1)(node_view)
    try:
        asked = {
            n["NodeManagerHostname"] + " " + n["NodeManagerAddress"]: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
            ).remote(str(probe.absolute()))
            for n in nodes
        }
        for name, answer in asked.items():
            try:
                refuse_node(name, out, ray.get(answer, timeout=120))
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"node {name} can't run Seedbed: {str(error).strip().splitlines()[-1]}",
                    field="node",
                    remedy="install the same environment on every node (setup_commands and file_mounts of ray_cluster.yaml)",
                ) from error
    finally:
        probe.unlink(missing_ok=True)
    return len(nodes)


def node_view(probe: str) -> dict[str, Any]:
    """Runs on a node: what it sees of the output folder, and which Seedbed it imports."""
    from importlib import metadata

    import seedbed
    from seedbed import provenance

    return {
        "sees": Path(probe).exists(),
        "seedbed": seedbed.__version__,
        "sources": provenance.source_digest()[:12],
        "torch": metadata.version("torch"),
    }


def refuse_node(name: str, out: Path, view: Mapping[str, Any]) -> None:
    """UserError where a node would write elsewhere or compute with other code."""
    mine = node_view(os.devnull)
    if not view["sees"]:
        raise UserError(
            f"node {name} does not see {out}: the folder is local to one node",
            file=out,
            field="--out",
            remedy="give a folder on a file system that every node mounts at the same path (docs/cluster.md)",
        )
    for what in ("seedbed", "torch", "sources"):
        if view[what].partition("+")[0] != mine[what].partition("+")[0]:  # 2.13.0 and 2.13.0+cu126 are one version
            raise UserError(
                f"node {name} has {what} {view[what]}, the driver has {mine[what]}: it would compute something else",
                field="node",
                remedy="bring the nodes up to date: ray up --no-config-cache ray_cluster.yaml",
            )
