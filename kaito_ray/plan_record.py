# SPDX-License-Identifier: Apache-2.0
"""A plan or an offer in, the JSON that `kaito-ray plan -o json` prints out. The keys are stable."""

from typing import Any

from kaito_ray.advise import Offer
from kaito_ray.plan import Plan, ServePlan
from kaito_ray.preset import Preset


def plan_record(plan: Plan) -> dict[str, Any]:
    """One plan; what has no meaning for its kind is null."""
    record = {
        "name": plan.name,
        "namespace": plan.namespace,
        "model": plan.model,
        "instanceType": plan.instance_type,
        "nodes": plan.nodes,
        "gpusPerNode": plan.gpus_per_node,
        "weightsGiB": plan.weights_gib,
        "hourlyUSD": plan.hourly_usd,
        "warnings": list(plan.warnings),
    }
    if isinstance(plan, ServePlan):
        return record | {
            "kind": "serve",
            "tensorParallel": plan.tensor_parallel,
            "pipelineParallel": plan.pipeline_parallel,
            "replicas": plan.replicas,
            "maxModelLen": plan.max_model_len,
            "kvBytesPerToken": plan.kv_bytes_per_token,
            "dtype": plan.dtype,
            "gpuMemoryGiB": _budget(plan),
        }
    return record | {
        "kind": "tune",
        "tensorParallel": None,
        "pipelineParallel": None,
        "replicas": None,
        "maxModelLen": plan.arguments["training"]["max_length"],
        "kvBytesPerToken": None,
        "method": plan.method,
        "workers": plan.workers,
    }


def _budget(plan: ServePlan) -> dict[str, float]:
    parts = plan.budget
    return {
        "total": round(parts.gpu_gib, 2),
        "usable": round(parts.usable_gib, 2),
        "weights": round(parts.weights_gib, 2),
        "kvCache": round(parts.kv_cache_gib, 2),
        "activations": round(parts.activations_gib, 2),
        "adapters": round(parts.lora_gib, 2),
        "overhead": round(parts.overhead_gib, 2),
    }


def offer_record(offer: Offer) -> dict[str, Any]:
    """One size on which a model runs."""
    sizing = offer.sizing
    return {
        "instanceType": offer.sku.name,
        "nodes": sizing.nodes,
        "gpusPerNode": offer.sku.gpus,
        "tensorParallel": sizing.shape.tensor,
        "pipelineParallel": sizing.shape.pipeline,
        "replicas": sizing.replicas,
        "maxModelLen": sizing.max_model_len,
        "hourlyUSD": offer.hourly_usd,
        "warnings": list(offer.sku.warnings),
    }


def preset_record(preset: Preset) -> dict[str, Any]:
    """The facts of a preset that a program may want."""
    return {
        "name": preset.name,
        "aliases": list(preset.aliases),
        "license": preset.license,
        "gated": preset.gated,
        "architecture": preset.architecture,
        "attention": preset.attention,
        "weightsGiB": preset.weights_gib,
        "maxModelLen": preset.context,
        "kvBytesPerToken": preset.kv_bytes_per_token,
        "quantization": preset.quantization,
        "layers": preset.layers,
        "heads": preset.heads,
        "kvHeads": preset.kv_heads,
        "headDim": preset.head_dim,
        "toolParser": preset.tool_parser,
        "reasoningParser": preset.reasoning_parser,
        "lora": preset.lora,
        "tuning": preset.tuning,
        "source": preset.source,
        "revision": preset.revision,
    }
