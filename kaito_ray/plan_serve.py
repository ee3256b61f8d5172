# SPDX-License-Identifier: Apache-2.0
"""An inference Workspace, its preset and size in; a ServePlan out. Called by plan.plan()."""

import math
import re
from dataclasses import replace
from typing import Any

from kaito_ray.annotations import read_annotations
from kaito_ray.engine_flags import compute_dtype, engine_flags
from kaito_ray.errors import InvalidManifest, Problem
from kaito_ray.inference_config import InferenceConfig
from kaito_ray.load_format import load_flags
from kaito_ray.model_source import model_source
from kaito_ray.plan import AdapterPlan, Placement, ServePlan
from kaito_ray.plan_target import HEAD, size_warnings, worker_size
from kaito_ray.preset import Preset
from kaito_ray.serve_sizing import Question, decide
from kaito_ray.settings import Settings
from kaito_ray.sizing import Sizing
from kaito_ray.sku import Sizes, Sku
from kaito_ray.workspace import Adapter, Inference, Workspace

ADAPTERS_DIR = "/mnt/adapters"
# The address of an adapter's page stands for the files of its repository.
_HUB_PAGE = re.compile(r"https://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/tree/([\w.-]+))?/?", re.ASCII)


def plan_serve(
    workspace: Workspace,
    inference: Inference,
    preset: Preset,
    sku: Sku | None,
    settings: Settings,
    *,
    config: InferenceConfig,
    sizes: Sizes | None,
    context: int | None,
) -> ServePlan:
    """Every decision about serving; raises DoesNotFit when nothing within the caps holds the model."""
    wishes = read_annotations(workspace)
    demand = config.demand(preset)
    if context is not None:
        demand = replace(demand, context=context)
    if inference.adapters and not demand.lora:
        why = (
            "enable-lora is false in inference.config" if preset.lora else "vLLM does not serve adapters of this model"
        )
        raise InvalidManifest([Problem(("inference", "adapters"), f"{preset.name} cannot take adapters: {why}")])
    question = Question(
        preset,
        demand,
        workspace.resource,
        inference.autoscaling,
        settings,
        sizes,
        bypass_checks=wishes.bypass_checks,
    )
    made = decide(question, sku)
    sku, sizing = made.sku, made.sizing
    source = model_source(workspace, inference.preset, preset, sku, settings)
    worker = worker_size(sku)
    placement = _placement(sku, sizing, worker.cpus)
    flags = engine_flags(preset, sku, sizing, executor=placement.executor) | dict(wishes.flags) | dict(config.flags)
    if context is not None:
        flags["max-model-len"] = sizing.max_model_len
    flags |= load_flags(source, preset.engine_gib, worker.memory_gib, flags)
    options = inference.preset.preset_options if inference.preset else None
    served = flags.pop("served-model-name", None)
    return ServePlan(
        name=workspace.metadata.name,
        namespace=workspace.metadata.namespace,
        uid=workspace.metadata.uid,
        model=preset.name,
        source=source,
        instance_type=sku.name,
        node_labels=dict(workspace.resource.label_selector.match_labels),
        nodes=made.nodes,
        gpus_per_node=sku.gpus,
        head=HEAD,
        worker=worker,
        weights_gib=preset.weights_gib,
        hourly_usd=made.hourly_usd,
        warnings=(*made.warnings, *size_warnings(sku), *wishes.warnings, *config.warnings),
        served_model_name=served[0] if served else preset.served_name,
        tensor_parallel=sizing.shape.tensor,
        pipeline_parallel=sizing.shape.pipeline,
        replicas=made.replicas,
        nodes_per_replica=sizing.nodes,
        max_model_len=sizing.max_model_len,
        kv_bytes_per_token=preset.kv_bytes_per_token,
        dtype=str(flags.get("dtype", compute_dtype(preset, sku))),
        budget=sizing.budget,
        placement=placement,
        engine=flags,
        # Twice the engine's width must get in before the queue guard can count, and some to be told 429.
        max_ongoing_requests=2 * sizing.load.sequences + 64,
        max_queued_requests=sizing.load.sequences,
        adapters=tuple(_adapter(adapter, local=sku.is_this_machine) for adapter in inference.adapters),
        follow_tags=wishes.follow_tags,
        autoscaling=made.autoscaling,
        hf_token_secret=(options.model_access_secret if options else "") or None,
        api_keys_secret=wishes.api_keys_secret,
        pull_secrets=tuple(
            dict.fromkeys(secret for adapter in inference.adapters for secret in adapter.source.image_pull_secrets)
        ),
        load_balancer=wishes.load_balancer,
        local_weights_host_path=source.reference if source.volume and source.volume.kind == "host" else None,
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


def _placement(sku: Sku, sizing: Sizing, node_cpus: float) -> Placement:
    shape = sizing.shape
    if sku.gpus == 0:
        # Ray gives the engine as many threads as its actor has CPUs.
        return Placement("uni", actor_cpus=node_cpus, actor_gpus=0)
    cpus = float(max(1, min(4, math.floor(node_cpus / sizing.replicas))))
    if shape.gpus == 1:
        return Placement("uni", actor_cpus=cpus, actor_gpus=1)
    if shape.pipeline == 1:
        return Placement("mp", actor_cpus=cpus, actor_gpus=shape.gpus)
    # The first bundle also holds the replica itself, which takes no GPU: the engine's workers take one each.
    bundles: list[dict[str, float]] = [{"GPU": 1.0} for _ in range(shape.gpus)]
    bundles[0]["CPU"] = cpus
    return Placement("ray", actor_cpus=cpus, actor_gpus=0, bundles=tuple(bundles))


def _adapter(adapter: Adapter, *, local: bool) -> AdapterPlan:
    """The adapter as a replica stages it: a folder, an image, addresses, a page of the hub, or a tuning Workspace."""
    source = adapter.source
    value: dict[str, Any]
    if source.volume_source:
        host = source.volume_source.get("hostPath") if local else None
        value = {"path": host["path"] if host else f"{ADAPTERS_DIR}/{source.name}"}
    elif source.image:
        value = {"image": source.image}
    elif len(source.urls) == 1 and (page := _HUB_PAGE.fullmatch(source.urls[0])):
        value = {"hub": page[1], "revision": page[2]} if page[2] else {"hub": page[1]}
    elif source.urls:
        value = {"urls": list(source.urls)}
    else:
        value = {"workspace": source.workspace}
    return AdapterPlan(source.name, value, float(adapter.strength) if adapter.strength is not None else 1.0)
