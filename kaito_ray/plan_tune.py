# SPDX-License-Identifier: Apache-2.0
"""A tuning Workspace, its preset and size in; a TunePlan out. Called by plan.plan()."""

from typing import Any

from kaito_ray.advise import hourly_usd
from kaito_ray.errors import DoesNotFit
from kaito_ray.plan import TunePlan
from kaito_ray.plan_target import HEAD, require_usable, size_warnings, worker_size
from kaito_ray.preset import Preset
from kaito_ray.settings import Settings
from kaito_ray.shape import GIB
from kaito_ray.sku import Sizes, Sku
from kaito_ray.workspace import DataDestination, DataSource, Tuning, Workspace

# Adapters of rank 8 on every linear layer: KAITO's default rank, and the layers its phi-3 presets name.
_RANK = 8
_LENGTH = 2048


def plan_tune(
    workspace: Workspace,
    tuning: Tuning,
    preset: Preset,
    sku: Sku | None,
    settings: Settings,
    *,
    sizes: Sizes | None,
) -> TunePlan:
    """Every decision about tuning; raises DoesNotFit when one GPU cannot hold the model while it learns."""
    if not preset.tuning:
        raise DoesNotFit(f"{preset.name} cannot be tuned: kaito-ray has no tuning facts about it", reason="NotTunable")
    nodes = min(workspace.resource.count, settings.max_nodes)
    quantised = tuning.method == "qlora"
    length = min(preset.context, _LENGTH)
    needed = training_gib(preset, quantised=quantised, length=length)
    warnings: list[str] = []
    if sku is None:
        sku = _cheapest(preset, sizes, needed)
        warnings.append(f"resource.instanceType is empty, so the cheapest size that fits was taken: {sku.name}")
    require_usable(sku)
    available = _available_gib(sku)
    if needed > available:
        instead = "" if quantised else "; qlora needs about a quarter of the weights"
        raise DoesNotFit(
            f"{tuning.method} of {preset.name} needs {needed:.1f} GiB on one GPU, {sku.name} has {available:.1f}"
            f"{instead}"
        )
    return TunePlan(
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
        worker=worker_size(sku),
        weights_gib=preset.weights_gib,
        hourly_usd=hourly_usd(sku, nodes),
        warnings=(*warnings, *size_warnings(sku)),
        method=tuning.method,
        workers=max(nodes * sku.gpus, 1),
        arguments={
            "compute_dtype": "bfloat16" if sku.bfloat16 else "float16" if sku.gpus else "float32",
            "lora_r": _RANK,
            "lora_alpha": _RANK,
            "max_length": length,
            "per_device_train_batch_size": 1,
            "target_modules": "all-linear",
        },
        input=_source(tuning.input),
        output=_destination(tuning.output),
        config=tuning.config or None,
        hf_token_secret=tuning.preset.preset_options.model_access_secret or None,
    )


def _available_gib(sku: Sku) -> float:
    """What one worker may fill: a GPU less its context, or this machine less its processes."""
    return sku.gpu_gib - 1.0 if sku.gpus else sku.ram_gib - 3.0


def _cheapest(preset: Preset, sizes: Sizes | None, needed: float) -> Sku:
    fitting = [
        sku for sku in sizes or () if sku.suggested and sku.usd_per_hour is not None and _available_gib(sku) >= needed
    ]
    if not fitting:
        raise DoesNotFit(f"no size that kaito-ray may choose holds {preset.name} while it learns ({needed:.1f} GiB)")
    return min(fitting, key=lambda sku: (sku.usd_per_hour or 0.0, sku.name))


def training_gib(preset: Preset, *, quantised: bool, length: int) -> float:
    """Memory of one worker, which holds a whole copy of the base model.

    Weights: 16 bits, or nf4 with double quantisation, 4.127 bits per weight of the layers (the QLoRA paper, arXiv
    2305.14314), with embedding and output head in 16 bits. Adapter: rank x (inputs + outputs) of every linear layer,
    about 20 x hidden per layer, in float32 with its gradient and Adam's two moments, 16 bytes each. Activations with
    gradient checkpointing: one hidden state per layer, one layer's own in full, and the logits with their gradient in
    float32. 1 GiB for CUDA and the allocator.
    """
    tables = 2 * preset.vocab_size * preset.hidden_size * 2 / GIB
    layers = max(preset.engine_gib - tables, 0.0)
    weights = layers * (4.127 / 16 if quantised else 1.0) + min(tables, preset.engine_gib)
    adapter = 16 * _RANK * 20 * preset.hidden_size * preset.layers / GIB
    inner = preset.intermediate_size or 4 * preset.hidden_size
    activations = length * 2 * (preset.layers * preset.hidden_size + 8 * preset.hidden_size + 6 * inner) / GIB
    logits = 2 * 4 * length * preset.vocab_size / GIB
    return weights + adapter + activations + logits + 1.0


def _source(source: DataSource) -> dict[str, Any]:
    return source.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _destination(destination: DataDestination) -> dict[str, Any]:
    return destination.model_dump(mode="json", by_alias=True, exclude_defaults=True)
