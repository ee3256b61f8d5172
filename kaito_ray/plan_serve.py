# SPDX-License-Identifier: Apache-2.0
"""An inference Workspace, its preset and size in; a ServePlan out. Called by plan.plan()."""

import math
from typing import Any

from kaito_ray import names
from kaito_ray.cpu_sizing import size_on_cpu
from kaito_ray.engine_flags import compute_dtype, engine_flags
from kaito_ray.errors import DoesNotFit
from kaito_ray.inference_config import InferenceConfig
from kaito_ray.plan import AdapterPlan, Autoscaling, Placement, ServePlan
from kaito_ray.plan_target import HEAD, size_warnings, worker_size
from kaito_ray.preset import Preset
from kaito_ray.settings import Settings
from kaito_ray.sizing import Sizing, size_model
from kaito_ray.sku import Sku
from kaito_ray.workspace import Adapter, Inference, Workspace

ADAPTERS_DIR = "/mnt/adapters"


def plan_serve(
    workspace: Workspace,
    inference: Inference,
    preset: Preset,
    sku: Sku,
    settings: Settings,
    config: InferenceConfig,
) -> ServePlan:
    """Every decision about serving; raises DoesNotFit when nothing within the caps holds the model."""
    lora = preset.lora
    if inference.adapters and not lora:
        raise DoesNotFit(f"{preset.name} cannot take LoRA adapters in vLLM, and the Workspace names some")
    sizing = _size(preset, sku, settings, context=config.context, lora=lora)
    nodes, replicas, autoscaling = _copies(inference, sizing, sku, settings, preset)
    worker = worker_size(sku)
    placement = _placement(sku, sizing, worker.cpus)
    options = inference.preset.preset_options if inference.preset else None
    sequences = sizing.load.sequences
    return ServePlan(
        name=workspace.metadata.name,
        namespace=workspace.metadata.namespace,
        uid=workspace.metadata.uid,
        model=preset.name,
        source=preset.model_source,
        instance_type=sku.name,
        node_labels=dict(workspace.resource.label_selector.match_labels),
        nodes=nodes,
        gpus_per_node=sku.gpus,
        head=HEAD,
        worker=worker,
        weights_gib=preset.weights_gib,
        hourly_usd=None if sku.usd_per_hour is None else round(nodes * sku.usd_per_hour, 3),
        warnings=size_warnings(sku),
        served_model_name=preset.served_name,
        tensor_parallel=sizing.shape.tensor,
        pipeline_parallel=sizing.shape.pipeline,
        replicas=replicas,
        nodes_per_replica=sizing.nodes_per_replica,
        max_model_len=sizing.max_model_len,
        kv_bytes_per_token=preset.kv_bytes_per_token,
        dtype=compute_dtype(preset, sku),
        budget=sizing.budget,
        placement=placement,
        engine=engine_flags(preset, sku, sizing, executor=placement.executor) | dict(config.flags),
        # Twice the engine's width must get in before the queue guard can count, and some to be told 429.
        max_ongoing_requests=2 * sequences + 64,
        max_queued_requests=sequences,
        adapters=tuple(_adapter(adapter, local=sku.gpus == 0) for adapter in inference.adapters),
        autoscaling=autoscaling,
        hf_token_secret=(options.model_access_secret if options else "") or None,
        api_keys_secret=workspace.metadata.annotations.get(names.ANNOTATION_API_KEYS) or None,
        pull_secrets=tuple(
            dict.fromkeys(secret for adapter in inference.adapters for secret in adapter.source.image_pull_secrets)
        ),
        volumes=tuple(
            {
                "name": adapter.source.name,
                "source": adapter.source.volume_source,
                "mount": f"{ADAPTERS_DIR}/{adapter.source.name}",
            }
            for adapter in inference.adapters
            if adapter.source.volume_source
        ),
    )


def _size(preset: Preset, sku: Sku, settings: Settings, *, context: int | None, lora: bool) -> Sizing:
    if sku.gpus == 0:
        return size_on_cpu(preset, sku, context=context, lora=lora)
    return size_model(preset, sku, context=context, max_nodes=settings.max_nodes, lora=lora)


def _copies(
    inference: Inference, sizing: Sizing, sku: Sku, settings: Settings, preset: Preset
) -> tuple[int, int, Autoscaling | None]:
    """Nodes, copies, and the bounds of their number; nodes are for the most copies there can be."""
    wish = inference.autoscaling
    if wish is None:
        return sizing.nodes, sizing.replicas, None
    per_group = sizing.replicas
    nodes = math.ceil(wish.max_replicas / per_group) * sizing.nodes_per_replica
    if sku.gpus and nodes > settings.max_nodes:
        raise DoesNotFit(
            f"inference.autoscaling.maxReplicas {wish.max_replicas} of {preset.name} need {nodes} x {sku.name}, "
            f"and at most {settings.max_nodes} nodes are allowed"
        )
    target = wish.target_ongoing_requests or sizing.load.sequences // 2
    return nodes, max(wish.min_replicas, 1), Autoscaling(wish.min_replicas, wish.max_replicas, target)


def _placement(sku: Sku, sizing: Sizing, node_cpus: float) -> Placement:
    shape = sizing.shape
    if sku.gpus == 0:
        # Ray gives the engine as many threads as its actor has CPUs.
        return Placement("uni", actor_cpus=node_cpus, actor_gpus=0)
    copies = max(sizing.replicas, 1)
    cpus = float(max(1, min(4, math.floor(node_cpus / copies))))
    if shape.gpus == 1:
        return Placement("uni", actor_cpus=cpus, actor_gpus=1)
    if shape.pipeline == 1:
        return Placement("mp", actor_cpus=cpus, actor_gpus=shape.gpus)
    # The first bundle also holds the replica itself, which takes no GPU: the engine's workers take one each.
    bundles: list[dict[str, float]] = [{"GPU": 1.0} for _ in range(shape.gpus)]
    bundles[0]["CPU"] = cpus
    return Placement("ray", actor_cpus=cpus, actor_gpus=0, bundles=tuple(bundles))


def _adapter(adapter: Adapter, *, local: bool) -> AdapterPlan:
    """The adapter as a replica stages it: a mounted folder, an image, addresses, or a tuning Workspace."""
    source = adapter.source
    value: dict[str, Any]
    if source.volume_source:
        host = source.volume_source.get("hostPath") if local else None
        value = {"path": host["path"] if host else f"{ADAPTERS_DIR}/{source.name}"}
    elif source.image:
        value = {"image": source.image}
    elif source.urls:
        value = {"urls": list(source.urls)}
    else:
        value = {"workspace": source.workspace}
    return AdapterPlan(source.name, value, float(adapter.strength) if adapter.strength is not None else 1.0)
