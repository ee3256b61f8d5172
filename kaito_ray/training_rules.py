# SPDX-License-Identifier: Apache-2.0
"""Which options of a training configuration kaito-ray decides itself, passes over or refuses, and why. Data only.

Read by training_config.py. Everything else that the installed libraries know is handed to them. SFTConfig and DPOConfig
are TrainingArguments of the methods that train with them.
"""

from collections.abc import Mapping

_PLACED = "each worker of kaito-ray holds a whole copy of the model"
_KEPT = "kaito-ray keeps checkpoints while it trains, resumes from them, and removes them at the end"
_PUBLISHED = "the adapter goes where tuning.output says"
_SHOWN = "progress is in status.tuning, in the metrics and in metrics.jsonl"
_LOADED = "kaito-ray loads the model of tuning.preset at the revision of its catalogue"
_SERVED = "vLLM cannot serve such an adapter"
_COLLATED = "TRL's own collator is used"
_GONE = "TRL has no such option any more"
_REFERENCE = "the reference is the model itself with its adapter off, which takes no memory and stays as it was"

TRAINERS: Mapping[str, str] = {"lora": "SFTConfig", "qlora": "SFTConfig", "dpo": "DPOConfig"}
"""By method, TRL's options of its own."""

RENAMED: Mapping[str, Mapping[str, str]] = {
    "ModelConfig": {"torch_dtype": "dtype"},
    "LoraConfig": {},
    "QuantizationConfig": {},
    "DataCollator": {},
    "DatasetConfig": {},
    "TrainingArguments": {
        "max_seq_length": "max_length",
        "evaluation_strategy": "eval_strategy",
        # A warm-up of less than one step is a share of all of them.
        "warmup_ratio": "warmup_steps",
        "per_gpu_train_batch_size": "per_device_train_batch_size",
        "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    },
}
"""Names that older releases of the libraries had, with their present ones."""

IDLE: Mapping[str, Mapping[str, str]] = {
    "ModelConfig": {
        "allow_remote_files": _LOADED, "cache_dir": _LOADED, "config": _LOADED, "device_map": _PLACED,
        "force_download": _LOADED, "from_flax": _LOADED, "from_tf": _LOADED, "ignore_mismatched_sizes": _LOADED,
        "load_in_4bit": "tuning.method says how it is loaded", "load_in_8bit": "tuning.method says how it is loaded",
        "local_files_only": _LOADED, "low_cpu_mem_usage": _LOADED, "m_revision": _LOADED, "mirror": _LOADED,
        "output_loading_info": _LOADED, "pretrained_model_name_or_path": _LOADED, "proxies": _LOADED,
        "resume_download": _LOADED, "revision": _LOADED, "state_dict": _LOADED, "token": _LOADED,
        "trust_remote_code": "the catalogue says which models bring code of their own", "use_safetensors": _LOADED,
    },
    "LoraConfig": {
        "auto_mapping": _LOADED, "base_model_name_or_path": _LOADED, "inference_mode": "it is for training here",
        "peft_type": "tuning.method says it", "peft_version": _LOADED, "revision": _LOADED, "runtime_config": _PLACED,
        "task_type": "language models are tuned here",
    },
    "QuantizationConfig": {},
    "DataCollator": {
        "mask_replace_prob": _COLLATED, "mlm": _COLLATED, "mlm_probability": _COLLATED,
        "random_replace_prob": _COLLATED, "return_tensors": _COLLATED, "seed": _COLLATED,
        "tf_experimental_compile": _COLLATED, "tokenizer": _COLLATED, "whole_word_mask": _COLLATED,
    },
    "DatasetConfig": {},
    "TrainingArguments": {
        "ddp_backend": _PLACED, "ddp_find_unused_parameters": _PLACED, "disable_tqdm": _SHOWN, "do_eval": _SHOWN,
        "do_predict": _SHOWN, "do_train": _SHOWN,
        "hub_always_push": _PUBLISHED, "hub_model_id": _PUBLISHED, "hub_private_repo": _PUBLISHED,
        "hub_revision": _PUBLISHED, "hub_strategy": _PUBLISHED, "include_num_input_tokens_seen": _SHOWN,
        "local_rank": _PLACED, "log_level": _SHOWN, "log_level_replica": _SHOWN, "log_on_each_node": _SHOWN,
        "logging_nan_inf_filter": _SHOWN, "output_dir": _PUBLISHED, "project": _SHOWN, "push_to_hub": _PUBLISHED,
        "remove_unused_columns": "TRL decides it", "report_to": _SHOWN,
        "restore_callback_states_from_checkpoint": _KEPT,
        "resume_from_checkpoint": _KEPT, "run_name": _SHOWN, "save_on_each_node": _KEPT, "save_only_model": _KEPT,
        "save_steps": _KEPT, "save_strategy": _KEPT, "save_total_limit": _KEPT, "enable_jit_checkpoint": _KEPT,
        "ignore_data_skip": _KEPT, "trackio_bucket_id": _SHOWN, "trackio_space_id": _SHOWN,
        "trackio_static_space_id": _SHOWN, "use_cpu": "the size decides it", "no_cuda": "the size decides it",
        "trust_remote_code": "the catalogue says which models bring code of their own",
        "dataset_batch_size": _GONE, "dispatch_batches": _GONE, "fp16_backend": _GONE, "fp16_opt_level": _GONE,
        "half_precision_backend": _GONE, "include_inputs_for_metrics": _GONE, "include_tokens_per_second": _GONE,
        "jit_mode_eval": _GONE, "logging_dir": _GONE, "num_of_sequences": _GONE, "overwrite_output_dir": _GONE,
        "past_index": _GONE, "ray_scope": _GONE, "save_safetensors": _GONE, "split_batches": _GONE,
        "torchdynamo": _GONE, "tpu_metrics_debug": _GONE, "tpu_num_cores": _GONE, "use_ipex": _GONE,
        "use_legacy_prediction_loop": _GONE, "use_mps_device": _GONE,
    },
    "SFTConfig": {"dataset_text_field": "DatasetConfig.response_column names the column"},
    "DPOConfig": {
        "label_smoothing_factor": "TRL's losses on pairs know label_smoothing only",
        "padding_free": "TRL 1.16 pads pairs whatever it says",
        "precompute_ref_batch_size": _REFERENCE, "precompute_ref_log_probs": _REFERENCE,
    },
}  # fmt: skip
"""Options that change nothing here; said once as a warning, unless the value is what happens anyway."""

REFUSED: Mapping[str, Mapping[str, str]] = {
    "ModelConfig": {},
    "LoraConfig": {
        "alora_invocation_tokens": _SERVED, "arrow_config": _SERVED, "corda_config": _SERVED,
        "ensure_weight_tying": _SERVED, "eva_config": _SERVED, "kasa_config": _SERVED, "layer_replication": _SERVED,
        "loftq_config": _SERVED, "lora_bias": _SERVED, "lora_ga_config": _SERVED, "megatron_config": _SERVED,
        "megatron_core": _SERVED, "modules_to_save": _SERVED, "monteclora_config": _SERVED,
        "qalora_group_size": _SERVED, "target_parameters": _SERVED, "trainable_token_indices": _SERVED,
        "use_bdlora": _SERVED, "use_dora": _SERVED, "use_qalora": _SERVED, "velora_config": _SERVED,
    },
    "QuantizationConfig": {
        "llm_int8_enable_fp32_cpu_offload": _PLACED, "llm_int8_has_fp16_weight": _PLACED,
    },
    "DataCollator": {},
    "DatasetConfig": {},
    "TrainingArguments": {
        "accelerator_config": _PLACED, "auto_find_batch_size": "workers would come to different sizes; set"
        " per_device_train_batch_size", "deepspeed": _PLACED, "fsdp": _PLACED, "fsdp_config": _PLACED,
        "hub_token": "it is a secret, and " + _PUBLISHED,
        "load_best_model_at_end": "the adapter is the one after the last step", "model_init_kwargs": "use ModelConfig",
        "parallelism_config": _PLACED,
    },
    "SFTConfig": {
        "chat_template_path": "give the template itself in ModelConfig.chat_template",
        "dataset_kwargs": "kaito-ray prepares the data itself",
    },
    "DPOConfig": {
        "ref_model_mixup_alpha": _REFERENCE, "ref_model_sync_steps": _REFERENCE, "sync_ref_model": _REFERENCE,
    },
}  # fmt: skip
"""Options that would be dropped or break something; an empty or false value of them is let through."""
