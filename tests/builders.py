# SPDX-License-Identifier: Apache-2.0
"""Values for tests: a good default and the overrides that matter, as in `a_serve_plan(replicas=2)`."""

from dataclasses import replace
from typing import Any

from kaito_ray.plan import MemoryBudget, ModelSource, ModelVolume, Placement, PodSize, ServePlan, TunePlan
from kaito_ray.workspace import Workspace, parse_workspace

PHI_3 = "microsoft/Phi-3-mini-4k-instruct"


def a_document(**overrides: Any) -> dict[str, Any]:
    """A Workspace as a user writes it: inference of phi-3-mini unless `tuning` is given.

    `name`, `namespace`, `uid`, `annotations` and `labels` go to the metadata; `apiVersion`, `resource`, `inference`
    and `tuning` replace what stands there.
    """
    metadata = {"name": "workspace-phi-3-mini"}
    metadata |= {
        key: overrides.pop(key) for key in ("name", "namespace", "uid", "annotations", "labels") if key in overrides
    }
    document: dict[str, Any] = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": metadata,
        "resource": {
            "instanceType": "Standard_NC24ads_A100_v4",
            "labelSelector": {"matchLabels": {"apps": "phi-3"}},
        },
    }
    if "tuning" not in overrides:
        document["inference"] = {"preset": {"name": "phi-3-mini-4k-instruct"}}
    return document | overrides


def a_workspace(**overrides: Any) -> Workspace:
    """`a_document` parsed; raises InvalidManifest like any other document."""
    return parse_workspace(a_document(**overrides))


SOURCE = ModelSource(
    "hub",
    PHI_3,
    "f39ac1d28e925b323eae81227eaba4464caced4e",
    names=(PHI_3, "phi-3-mini-4k-instruct"),
    architecture="Phi3ForCausalLM",
    volume=ModelVolume("pod"),
)


def a_serve_plan(**overrides: Any) -> ServePlan:
    """Phi-3-mini on one A100, with every field of the plan open to `overrides`."""
    plan = ServePlan(
        name="workspace-phi-3-mini",
        namespace="default",
        uid="6a7b1f6e-0001-4c0f-9b1e-3f1d2c9a0001",
        model=PHI_3,
        source=SOURCE,
        instance_type="Standard_NC24ads_A100_v4",
        node_labels={"apps": "phi-3"},
        nodes=1,
        gpus_per_node=1,
        head=PodSize(cpus=2, memory_gib=8),
        worker=PodSize(cpus=22, memory_gib=198, gpus=1),
        weights_gib=7.12,
        hourly_usd=3.67,
        warnings=(),
        served_model_name="phi-3-mini-4k-instruct",
        tensor_parallel=1,
        pipeline_parallel=1,
        replicas=1,
        nodes_per_replica=1,
        max_model_len=4096,
        kv_bytes_per_token=393216,
        dtype="bfloat16",
        budget=MemoryBudget(
            gpu_gib=80.0,
            usable_gib=72.0,
            weights_gib=7.12,
            kv_cache_gib=60.0,
            activations_gib=2.0,
            lora_gib=0.5,
            overhead_gib=1.0,
        ),
        placement=Placement("uni", actor_cpus=4, actor_gpus=1),
        engine={"dtype": "bfloat16", "enable-lora": True, "max-model-len": 4096},
        max_ongoing_requests=512,
        max_queued_requests=256,
    )
    return replace(plan, **overrides)


def a_tune_plan(**overrides: Any) -> TunePlan:
    """QLoRA of Phi-3-mini on one A100 from a URL to an image."""
    plan = TunePlan(
        name="workspace-tuning-phi-3",
        namespace="default",
        uid="6a7b1f6e-0001-4c0f-9b1e-3f1d2c9a0002",
        model=PHI_3,
        source=SOURCE,
        instance_type="Standard_NC24ads_A100_v4",
        node_labels={"app": "tuning-phi-3"},
        nodes=1,
        gpus_per_node=1,
        head=PodSize(cpus=2, memory_gib=8),
        worker=PodSize(cpus=22, memory_gib=198, gpus=1),
        weights_gib=7.12,
        hourly_usd=3.67,
        warnings=(),
        method="qlora",
        workers=1,
        arguments={
            "use_gpu": True,
            "model": {"dtype": "bfloat16"},
            "lora": {"r": 8, "lora_alpha": 8},
            "training": {"max_length": 2048, "per_device_train_batch_size": 8},
            "data": {},
        },
        input={"urls": ["https://example.com/data/train.parquet?download=true"]},
        output={"image": "registry.example.com/adapters/phi-3:0.0.1", "imagePushSecret": "registry-push"},
    )
    return replace(plan, **overrides)
