# SPDX-License-Identifier: Apache-2.0
"""KAITO's inference ConfigMap: what is read of it, and what is said about what cannot be."""

from typing import Any

import pytest

from kaito_ray.errors import InvalidManifest
from kaito_ray.inference_config import KEY, parse_inference_config
from kaito_ray.preset import load_catalogue

PHI_3 = load_catalogue().get("phi-3-mini-128k-instruct")


def _flags(vllm: str) -> dict[str, Any]:
    return dict(parse_inference_config({KEY: f"vllm:\n{vllm}"}).flags)


@pytest.mark.parametrize(
    ("written", "flags"),
    [
        ("  max-model-len: 8192", {"max-model-len": 8192}),
        ('  max-model-len: "8192"', {"max-model-len": 8192}),
        ("  max_model_len: 8k", {"max-model-len": 8000}),
        ("  max-model-len: 8K", {"max-model-len": 8192}),
        ("  max-model-len: auto", {"max-model-len": "auto"}),
        ("  max-model-len: -1", {"max-model-len": "auto"}),
        ("  gpu-memory-utilization: 0.5", {"gpu-memory-utilization": 0.5}),
        ("  enable-prefix-caching: false", {"enable-prefix-caching": False}),
        ('  enforce-eager: ""', {"enforce-eager": True}),
        ("  no-enable-prefix-caching: true", {"enable-prefix-caching": False}),
        ("  kv-cache-dtype: fp8", {"kv-cache-dtype": "fp8"}),
        ('  speculative-config: \'{"method": "ngram"}\'', {"speculative-config": {"method": "ngram"}}),
        ("  speculative-config: {method: ngram}", {"speculative-config": {"method": "ngram"}}),
        ("  compilation-config.cudagraph_mode: NONE", {"compilation-config.cudagraph_mode": "NONE"}),
        ("  served-model-name: phi", {"served-model-name": ["phi"]}),
        ("  seed: 7", {"seed": 7}),
    ],
)
def test_flags_are_read_as_vllm_takes_them(written: str, flags: dict[str, Any]) -> None:
    assert _flags(written) == flags


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("  max-modle-len: 8192", "did you mean max-model-len"),
        ("  max-model-len: many", "must be a whole number, such as 8192 or 8k"),
        ("  max-num-seqs: 1.5", "must be a whole number"),
        ("  max-num-seqs: 0", "must be more than 0"),
        ("  gpu-memory-utilization: 1.5", "must be at most 1"),
        ("  gpu-memory-utilization: high", "must be a number"),
        ("  dtype: bf16", "must be one of auto, bfloat16"),
        ("  enforce-eager: maybe", "must be true or false"),
        ("  max-lora-rank: 7", "must be one of"),
        ("  speculative-config: ngram", "must be JSON"),
        ("  seed.x: 1", "has no parts"),
        ("  kaito-disable-rate-limit: true", "is no flag of vLLM"),
    ],
)
def test_a_flag_that_vllm_would_refuse_is_refused_before(written: str, message: str) -> None:
    with pytest.raises(InvalidManifest, match=message) as raised:
        _flags(written)
    assert raised.value.problems[0].field.startswith("inference.config.inference_config.yaml.vllm.")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("api-key", "kaito-ray.io/api-keys"),
        ("host", "Ray Serve listens"),
        ("port", "Ray Serve listens"),
        ("ssl-keyfile", "Ray Serve listens"),
        ("allowed-origins", "Ray Serve listens"),
        ("allowed-local-media-path", "read files of the server"),
        ("middleware", "loads code"),
        ("tool-parser-plugin", "loads code"),
        ("worker-extension-cls", "loads code"),
        ("trust-request-chat-template", "clients"),
        ("hf-token", "modelAccessSecret"),
        ("model", "inference.preset"),
        ("lora-modules", "inference.adapters"),
        ("data-parallel-size", "inference.autoscaling"),
        ("distributed-executor-backend", "GPUs of the plan"),
        ("no-trust-request-mm-kwargs", "clients"),
    ],
)
def test_a_flag_that_takes_the_server_out_of_our_hands_is_refused(flag: str, message: str) -> None:
    with pytest.raises(InvalidManifest, match=message):
        _flags(f"  {flag}: x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- vllm", "must be a mapping"),
        ("vllm: 7", "must be a map of vLLM's flags, got 7"),
        ("vlm: {}", "did you mean vllm"),
        ("vllm: {a: [}", "is not YAML"),
    ],
)
def test_a_text_that_is_no_config_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidManifest, match=message):
        parse_inference_config({KEY: text})


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(InvalidManifest) as raised:
        _flags("  port: 80\n  max-num-seqs: none\n  colour: blue")
    assert len(raised.value.problems) == 3


def test_a_configmap_without_the_key_is_named() -> None:
    with pytest.raises(InvalidManifest, match=KEY):
        parse_inference_config({"other.yaml": ""})


@pytest.mark.parametrize("data", [None, {KEY: ""}, {KEY: "vllm:\n"}])
def test_nothing_asked_changes_nothing(data: dict[str, str] | None) -> None:
    config = parse_inference_config(data)
    assert (dict(config.flags), config.warnings, config.demand(PHI_3).context) == ({}, (), None)


def test_kaitos_own_settings_are_accepted_and_said_to_do_nothing() -> None:
    config = parse_inference_config({KEY: "kv_cache_cpu_memory_utilization: 0.5\nmax_probe_steps: 6\nvllm: {}"})
    assert [warning.split(":")[1].split()[0] for warning in config.warnings] == [
        "kv_cache_cpu_memory_utilization",
        "max_probe_steps",
    ]


def test_what_the_arithmetic_must_know_reaches_it() -> None:
    flags = (
        "  max-model-len: 4096\n  tensor-parallel-size: 2\n  max-num-seqs: 8\n  enable-lora: false\n  max-lora-rank: 16"
    )
    demand = parse_inference_config({KEY: f"vllm:\n{flags}"}).demand(PHI_3)
    assert (demand.context, demand.tensor, demand.sequences, demand.lora, demand.lora_rank) == (4096, 2, 8, False, 16)
