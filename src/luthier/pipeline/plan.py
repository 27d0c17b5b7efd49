"""Memory and time of a run, before any weights."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.core.events import SILENT, Progress
from luthier.core.units import gigabytes
from luthier.pipeline.follow import unshardable
from luthier.pipeline.prepare import on_this_machine, plan_inputs, prepare_data, tokenize
from luthier.planning.devices import Cluster
from luthier.recipe.config import RunConfig

if TYPE_CHECKING:
    from luthier.planning.plan import PlanInputs
    from luthier.planning.resolve import ResolvedSettings


def plan(config: RunConfig, cluster: Cluster | None = None, *, progress: Progress = SILENT) -> dict[str, Any]:
    """Memory and time of a run, from its data and the base's config.json: no weights are read, nothing is written.

    Also what the recipe leaves open, decided as `train` would, and what other settings would need. On a `cluster` the
    numbers are those of one of its devices, in the layout that `train` would take, and of the other layout.
    """
    from luthier.planning.resolve import alternatives, resolve

    config = on_this_machine(config) if cluster is None else _on_cluster(config, cluster)
    data = prepare_data(config, progress)
    unloaded = config.model_copy(update={"model": config.model.model_copy(update={"init": "random"})})
    tokens = tokenize(unloaded, data, progress)  # its weights need not be there
    progress.stage("planning memory and time")
    inputs = plan_inputs(config, tokens)
    resolved, chosen = (resolve(inputs), dict[str, Any]()) if cluster is None else _layouts(config, inputs, cluster)
    plan = resolved.plan
    others = alternatives(inputs, resolved) if plan is not None and cluster is None else []
    return {
        "model": config.model.path,
        "method": config.method.name,
        "steps": inputs.steps,
        **resolved.record(),
        "why": resolved.why,
        "room": plan and {"total": plan.target.memory, "free": plan.target.free},
        "fits": plan and plan.fits,
        "alternatives": [
            {"change": change, "bytes": made.peak, "seconds": made.seconds, "fits": made.fits}
            for change, made in others
        ],
        **chosen,
    }


def _on_cluster(config: RunConfig, cluster: Cluster) -> RunConfig:
    """The recipe with types and precision decided by the devices of a cluster; this machine only works with shapes."""
    from luthier.models.load import architecture, locate

    model = config.model.model_copy(update={"device": "cpu"})
    if model.dtype == "auto" and model.init == "pretrained":
        bare = model.model_copy(update={"init": "random"})
        model = model.model_copy(update={"dtype": architecture(bare, locate(bare)).stored_type})
    precision = cluster.device.half if config.train.precision == "auto" else config.train.precision
    return config.model_copy(update={"model": model, "train": config.train.model_copy(update={"precision": precision})})


def _layouts(config: RunConfig, inputs: "PlanInputs", cluster: Cluster) -> tuple["ResolvedSettings", dict[str, Any]]:
    """The settings in the layout that `train` would take, and the record of all layouts with the reason for it."""
    from luthier.models.load import quantization
    from luthier.planning.resolve import resolve

    whole = resolve(replace(inputs, cluster=cluster, parallel="ddp"))
    chosen, why = whole, "one device is one process"
    tried = [whole]
    packed = quantization(inputs.model, inputs.tuned.config)
    if refused := unshardable(config, packed):
        why = refused
    elif cluster.ranks > 1:
        sharded = resolve(replace(inputs, cluster=cluster, parallel="fsdp"))
        hybrid = None
        if min(cluster.per_node, cluster.nodes) > 1:
            hybrid = resolve(replace(inputs, cluster=cluster, parallel="hsdp"))
        tried += [sharded, *filter(None, [hybrid])]
        if inputs.train.parallel != "auto":
            chosen = {"ddp": whole, "fsdp": sharded, "hsdp": hybrid or sharded}[inputs.train.parallel]
            why = f"the recipe says train.parallel={inputs.train.parallel}"
        elif whole.plan is None or sharded.plan is None or whole.plan.fits:
            why = "each device has room for the whole base beside its step"
        else:
            chosen = hybrid if hybrid is not None and hybrid.plan is not None and hybrid.plan.fits else sharded
            why = f"the whole base and its step take {gigabytes(whole.plan.peak)} of one device"
    record = {
        "devices": f"{cluster.per_node}x{cluster.name}",
        "nodes": cluster.nodes,
        "ranks": cluster.ranks,
        "link": cluster.device.link.name,
        "network": cluster.device.network.name,
        "source": cluster.device.source,
        "parallel": None if chosen.plan is None else chosen.plan.layout and chosen.plan.layout.parallel,
        "why": why,
        "refused": {"fsdp": refused} if refused else {},
        "idle": max(0, cluster.ranks - inputs.train.batch_size),
        "layouts": [
            {**made.plan.layout.record(cluster.ranks), "fits": made.plan.fits, "train": made.record()["train"]}
            for made in tried
            if made.plan is not None and made.plan.layout is not None
        ],
    }
    return chosen, {"cluster": record}
