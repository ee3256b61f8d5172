# SPDX-License-Identifier: Apache-2.0
"""A tuning Workspace, its preset and size in; a TunePlan out. Called by plan.plan().

`TunePlan.arguments` holds every option of the job: what the user's ConfigMap says, and for the rest KAITO's defaults
(reference: its `lora` and `qlora` templates) or what fits the model on that GPU. tune_arguments.py makes the job's file
of a plan.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from kaito_ray.advise import hourly_usd
from kaito_ray.errors import DoesNotFit, InvalidManifest, KaitoRayError, Problem
from kaito_ray.model_source import model_source
from kaito_ray.names import ANNOTATION_AFTER_TUNING
from kaito_ray.plan import TunePlan
from kaito_ray.plan_served import plan_served_after_tuning, releases_nodes
from kaito_ray.plan_target import HEAD, require_usable, size_warnings, worker_size
from kaito_ray.preset import Preset
from kaito_ray.render.claim import NO_STORAGE
from kaito_ray.settings import Settings
from kaito_ray.sku import Sizes, Sku, partitioned
from kaito_ray.training_config import TrainingConfig
from kaito_ray.tune_sizing import Load, accumulation, available_gib, candidates, learning_rate, training_gib
from kaito_ray.tuning_schedule import seconds_per_token
from kaito_ray.workspace import DataDestination, DataSource, Tuning, Workspace

# KAITO's defaults for its two methods; all linear layers are what its phi-3 presets name.
_RANK, _ALPHA = 8, 8
# Fewer steps than these teach a model little, so that a small data set is gone through more often than thrice.
_MIN_STEPS = 150
# Preferences are overlearned sooner than answers: TRL's own example of DPO takes one epoch.
_PAIRS_EPOCHS = 1.0
_WARMUP = 0.03
_SEED = 42


def plan_tune(
    workspace: Workspace,
    tuning: Tuning,
    preset: Preset,
    sku: Sku | None,
    settings: Settings,
    *,
    config: TrainingConfig,
    sizes: Sizes | None,
) -> TunePlan:
    """Every decision about tuning; raises DoesNotFit when one GPU cannot hold the model while it learns."""
    if not preset.tuning:
        raise DoesNotFit(f"{preset.name} cannot be tuned: kaito-ray has no tuning facts about it", reason="NotTunable")
    nodes = min(workspace.resource.count, settings.max_nodes)
    if nodes > 1 and settings.checkpoint_storage_class == NO_STORAGE and tuning.output.volume_source is None:
        message = "several nodes need storage that all of them see, and the operator's setting"
        raise InvalidManifest(
            [Problem(("resource", "count"), f"{message} CHECKPOINT_STORAGE_CLASS is none; write 1, or give a volume")]
        )
    warnings: list[str] = []
    if sku is None:
        sku = _cheapest(preset, sizes, tuning.method, config)
        warnings.append(f"resource.instanceType is empty, so the cheapest size that fits was taken: {sku.name}")
    require_usable(sku)
    if partition := workspace.resource.partition:
        sku = partitioned(sku, mode=partition.mode, profile=partition.profile, count=partition.count)
    load = _fit(preset, sku, tuning.method, config)
    worker = worker_size(sku)
    workers = nodes * max(sku.gpus, 1)
    arguments = _arguments(preset, sku, config, load, workers=workers, node_cpus=worker.cpus)
    plan = TunePlan(
        name=workspace.metadata.name,
        namespace=workspace.metadata.namespace,
        uid=workspace.metadata.uid,
        model=preset.name,
        source=replace(model_source(workspace, tuning.preset, preset, sku, settings), form="transformers"),
        instance_type=sku.name,
        node_labels=dict(workspace.resource.label_selector.match_labels),
        nodes=nodes,
        gpus_per_node=sku.gpus,
        head=HEAD,
        worker=worker,
        weights_gib=preset.weights_gib,
        hourly_usd=hourly_usd(sku, nodes),
        warnings=(*warnings, *size_warnings(sku), *config.warnings),
        method=tuning.method,
        workers=workers,
        arguments=arguments,
        input=_source(tuning.input),
        output=_destination(tuning.output),
        config=tuning.config or None,
        config_digest=config.digest,
        hf_token_secret=tuning.preset.preset_options.model_access_secret or None,
        seconds_per_token=seconds_per_token(
            preset,
            sku,
            workers=workers,
            quantised=arguments["quantization"] is not None,
            checkpointing=load.checkpointing,
            pairs=tuning.method == "dpo",
        ),
    )
    return _with_serving(plan, workspace, preset, sku, settings)


def _dtype(sku: Sku, config: TrainingConfig) -> Literal["bfloat16", "float16", "float32"]:
    """The user's wish where the hardware computes in it: KAITO's template asks for bfloat16 on any GPU."""
    if config.model.get("dtype") == "float32" or not sku.gpus:
        return "float32"
    if not sku.bfloat16 or config.model.get("dtype") == "float16":
        return "float16"
    return "bfloat16"


def _bits(method: str, sku: Sku | None, config: TrainingConfig) -> int:
    """Of a weight: dpo is quantised like qlora unless the user says load_in_4bit: false."""
    if config.quantization.get("load_in_8bit"):
        return 8
    if method == "qlora" or (method == "dpo" and config.quantization.get("load_in_4bit", True)):
        return 4
    return 32 if sku is not None and _dtype(sku, config) == "float32" else 16


def _loads(preset: Preset, sku: Sku | None, method: str, config: TrainingConfig) -> list[Load]:
    asked = Load(
        bits=_bits(method, sku, config),
        rank=config.lora.get("r", _RANK),
        batch=0,
        length=0,
        checkpointing=config.training.get("gradient_checkpointing", sku is None or sku.gpus > 0),
        pairs=method == "dpo",
    )
    wanted = config.training
    return list(
        candidates(preset, asked, batch=wanted.get("per_device_train_batch_size"), length=wanted.get("max_length"))
    )


def _fit(preset: Preset, sku: Sku, method: str, config: TrainingConfig) -> Load:
    """The first of the candidates that fits."""
    loads = _loads(preset, sku, method, config)
    available = available_gib(sku)
    for load in loads:
        if training_gib(preset, load) <= available:
            return load
    least = loads[-1]
    fewer = "qlora" if method == "lora" else "QuantizationConfig.load_in_4bit"
    instead = f"; {fewer} needs about a quarter of the weights" if least.bits >= 16 else ""
    raise DoesNotFit(
        f"{method} of {preset.name} needs {training_gib(preset, least):.1f} GiB on one GPU with {least.length} tokens"
        f" and a batch of {least.batch}, {sku.name} has {available:.1f}{instead}"
    )


def _cheapest(preset: Preset, sizes: Sizes | None, method: str, config: TrainingConfig) -> Sku:
    """The cheapest size on which the most wanted length and a batch of one fit."""
    loads = _loads(preset, None, method, config)
    needed = training_gib(preset, next(one for one in loads if one.batch == min(load.batch for load in loads)))
    fitting = [
        sku for sku in sizes or () if sku.suggested and sku.usd_per_hour is not None and available_gib(sku) >= needed
    ]
    if not fitting:
        raise DoesNotFit(f"no size that kaito-ray may choose holds {preset.name} while it learns ({needed:.1f} GiB)")
    return min(fitting, key=lambda sku: (sku.usd_per_hour or 0.0, sku.name))


def _arguments(
    preset: Preset,
    sku: Sku,
    config: TrainingConfig,
    load: Load,
    *,
    workers: int,
    node_cpus: float,
) -> dict[str, Any]:
    """The options of tune_jobs/arguments.py that do not depend on where the job runs."""
    dtype = _dtype(sku, config)
    # One CPU of each node is left to the job's driver and to Ray.
    share = (node_cpus - 1) / sku.gpus if sku.gpus else node_cpus / workers
    return {
        "use_gpu": sku.gpus > 0,
        "cpus_per_worker": float(max(1, int(share))),
        "model": {
            "dtype": dtype,
            "trust_remote_code": preset.trust_remote_code,
            "attn_implementation": config.model.get("attn_implementation"),
            "chat_template": config.model.get("chat_template") or preset.chat_template,
        },
        "quantization": _quantization(load.bits, dtype, config.quantization),
        "lora": {
            "r": _RANK,
            "lora_alpha": _ALPHA,
            "lora_dropout": 0.0,
            "target_modules": "all-linear",
            **config.lora,
        },
        "training": _training(preset, dtype, load, workers, config),
        "epochs_min_steps": None if {"num_train_epochs", "max_steps"} & config.training.keys() else _MIN_STEPS,
        "data": {
            "format": config.data.get("format"),
            "messages_column": config.data.get("messages_column"),
            "context_column": config.data.get("context_column"),
            "response_column": config.data.get("response_column"),
            "path": config.data.get("dataset_path", ""),
            "extension": config.data.get("dataset_extension", ""),
            "train_share": config.data.get("train_test_split", 1.0),
            "seed": config.data.get("shuffle_seed", _SEED),
        },
    }


def _quantization(bits: int, dtype: str, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """KAITO's qlora template; the GPU must be able to compute in what is asked for."""
    if bits >= 16:
        return None
    if bits == 8:
        return {**wanted, "load_in_4bit": False}
    template = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return {**template, **wanted, "bnb_4bit_compute_dtype": dtype}


def _training(preset: Preset, dtype: str, load: Load, workers: int, config: TrainingConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "learning_rate": learning_rate(preset, pairs=load.pairs),
        "lr_scheduler_type": "cosine",
        "warmup_steps": _WARMUP,
        "seed": _SEED,
        **config.training,
        "per_device_train_batch_size": load.batch,
        "max_length": load.length,
        "gradient_checkpointing": load.checkpointing,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
    }
    options.setdefault("gradient_accumulation_steps", accumulation(load.batch, workers))
    options.setdefault("per_device_eval_batch_size", load.batch)
    options.setdefault("dataloader_pin_memory", dtype != "float32")
    if load.checkpointing:
        # Reentrant checkpointing loses gradients behind the frozen embedding and fails under DDP.
        options.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    if load.pairs:
        options.setdefault("num_train_epochs", _PAIRS_EPOCHS)
        # What the model can do before it learns is what tells whether it breaks (tune_jobs/loss_judge.py).
        options.setdefault("logging_first_step", True)
    if not config.data.get("shuffle_dataset", True):
        options.setdefault("train_sampling_strategy", "sequential")
    return options


def _with_serving(plan: TunePlan, workspace: Workspace, preset: Preset, sku: Sku, settings: Settings) -> TunePlan:
    """The plan with a warning when the model, unquantised as it is served, will not fit once it is tuned."""
    if releases_nodes(workspace):
        return plan
    try:
        plan_served_after_tuning(workspace, plan, preset, sku, settings)
    except KaitoRayError as error:
        message = (
            f"it can be tuned here but not served afterwards: {error}; with {ANNOTATION_AFTER_TUNING}: release the"
            " nodes are given back when it is tuned"
        )
        return replace(plan, warnings=(*plan.warnings, message))
    return plan


def _source(source: DataSource) -> dict[str, Any]:
    return source.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _destination(destination: DataDestination) -> dict[str, Any]:
    return destination.model_dump(mode="json", by_alias=True, exclude_defaults=True)
