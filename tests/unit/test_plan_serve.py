# SPDX-License-Identifier: Apache-2.0
"""An inference Workspace in, its plan out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_ray.errors import DoesNotFit, InvalidManifest
from kaito_ray.plan import ServePlan, TunePlan, plan
from kaito_ray.preset import load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sku import Sku, cpu_size, load_sizes
from kaito_ray.workspace import parse_workspace

CATALOGUE, SIZES, SETTINGS = load_catalogue(), load_sizes(), Settings()
A100 = "Standard_NC24ads_A100_v4"
MANIFESTS = Path(__file__).resolve().parents[2].parent / "shared" / "user-manifests"


def a_plan(
    model: str = "phi-3-mini-4k-instruct",
    size: str | Sku | None = A100,
    *,
    annotations: dict[str, str] | None = None,
    vllm: dict[str, Any] | None = None,
    resource: dict[str, Any] | None = None,
    settings: Settings = SETTINGS,
    context: int | None = None,
    **inference: Any,
) -> ServePlan:
    """The plan of a Workspace that serves `model` on `size`; None lets kaito-ray choose."""
    name = size if isinstance(size, str) else ""
    document = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "mine", "annotations": annotations or {}},
        "resource": {"instanceType": name, "labelSelector": {"matchLabels": {"apps": "mine"}}} | (resource or {}),
        "inference": {"preset": {"name": model}} | inference,
    }
    sku = SIZES.get(size) if isinstance(size, str) else size
    config = {"inference_config.yaml": yaml.safe_dump({"vllm": vllm})} if vllm is not None else None
    made = plan(
        parse_workspace(document), CATALOGUE.get(model), sku, settings, config=config, sizes=SIZES, context=context
    )
    assert isinstance(made, ServePlan)
    return made


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason="the user's manifests are not beside this checkout")
@pytest.mark.parametrize(
    ("file", "kind", "context"),
    [
        ("01-inference-phi-3-mini.yaml", ServePlan, 4096),
        ("02-tuning-phi-3-mini.yaml", TunePlan, None),
        ("03-inference-phi-3-mini-adapter.yaml", ServePlan, 13104),
        ("04-tuning-phi-3-mini-adapter.yaml", TunePlan, None),
        ("05-tuning-phi-3.yaml", TunePlan, None),
    ],
)
def test_the_users_manifests_are_planned_on_the_size_they_name(file: str, kind: type, context: int | None) -> None:
    workspace = parse_workspace(yaml.safe_load((MANIFESTS / file).read_text()))
    work = workspace.inference or workspace.tuning
    assert work is not None
    assert work.preset is not None
    sku = SIZES.get(workspace.resource.instance_type)
    made = plan(workspace, CATALOGUE.get(work.preset.name), sku, SETTINGS, sizes=SIZES)
    assert isinstance(made, kind)
    assert (made.nodes, made.gpus_per_node, made.instance_type) == (1, 1, "Standard_NC6s_v3")
    warnings = "\n".join(made.warnings)
    assert all(word in warnings for word in ("retired", "Standard_NV36ads_A10_v5", "float16"))
    if isinstance(made, ServePlan):
        assert (made.dtype, made.max_model_len) == ("float16", context)


@pytest.mark.parametrize(
    ("model", "size", "cut", "replicas", "nodes", "executor"),
    [
        ("phi-3-mini-4k-instruct", A100, (1, 1), 1, 1, "uni"),
        ("phi-4-mini-instruct", "Standard_NC96ads_A100_v4", (1, 1), 4, 1, "uni"),
        ("phi-4", "Standard_NV72ads_A10_v5", (2, 1), 1, 1, "mp"),
        ("phi-4", "Standard_NV36ads_A10_v5", (1, 2), 1, 2, "ray"),
        ("llama-3.3-70b-instruct", "Standard_NC96ads_A100_v4", (2, 1), 2, 1, "mp"),
        ("deepseek-r1-0528", "Standard_ND96isr_H100_v5", (8, 2), 1, 2, "ray"),
        # 71 heads divide by nothing, so this one never spans the GPUs of a node.
        ("falcon-7b", "Standard_NC64as_T4_v3", (1, 2), 1, 2, "ray"),
        # 10 key heads: four GPUs would have to share them unevenly.
        ("phi-4", "Standard_NC64as_T4_v3", (2, 2), 1, 2, "ray"),
    ],
)
def test_gpus_are_cut_as_an_expert_would(
    model: str, size: str, cut: tuple[int, int], replicas: int, nodes: int, executor: str
) -> None:
    made = a_plan(model, size)
    assert (made.tensor_parallel, made.pipeline_parallel) == cut
    assert (made.replicas, made.nodes, made.nodes_per_replica) == (replicas, nodes, cut[1])
    assert made.placement.executor == made.engine["distributed-executor-backend"] == executor
    gpus = cut[0] * cut[1]
    assert len(made.placement.bundles) == (gpus if executor == "ray" else 0)
    assert made.placement.actor_gpus == (0 if executor == "ray" else gpus)
    assert (made.engine["tensor-parallel-size"], made.engine["pipeline-parallel-size"]) == cut


def test_gpus_that_are_paid_for_lengthen_a_short_context_before_they_become_copies() -> None:
    enough = a_plan("phi-3-medium-128k-instruct", "Standard_ND40rs_v2", context=2048)
    assert (enough.tensor_parallel, enough.replicas) == (1, 8)
    free = a_plan("phi-3-medium-128k-instruct", "Standard_ND40rs_v2")
    assert (free.tensor_parallel, free.replicas) == (2, 4)
    assert free.max_model_len > 8192


def test_the_engine_is_told_everything_the_arithmetic_assumed() -> None:
    made = a_plan("qwen2.5-coder-7b-instruct", "Standard_NV36ads_A10_v5")
    flags = made.engine
    assert flags["max-model-len"] == made.max_model_len
    assert flags["gpu-memory-utilization"] == pytest.approx(made.budget.usable_gib / made.budget.gpu_gib)
    assert (flags["max-num-seqs"], flags["max-num-batched-tokens"]) == (256, 2048)
    assert (flags["enable-auto-tool-choice"], flags["tool-call-parser"]) == (True, "hermes")
    assert (flags["enable-lora"], flags["max-lora-rank"], flags["max-loras"]) == (True, 64, 4)
    assert "trust-remote-code" not in flags
    assert made.max_queued_requests == 256
    assert made.max_ongoing_requests > made.max_queued_requests + flags["max-num-seqs"]
    parts = made.budget
    spent = parts.weights_gib + parts.kv_cache_gib + parts.activations_gib + parts.lora_gib + parts.overhead_gib
    assert spent == pytest.approx(parts.usable_gib)


@pytest.mark.parametrize(
    ("model", "size", "dtype"),
    [
        ("phi-4-mini-instruct", A100, "bfloat16"),
        ("phi-4-mini-instruct", "Standard_NC4as_T4_v3", "float16"),
        ("Qwen/Qwen3-8B-AWQ", A100, "auto"),
        ("Qwen/Qwen3-8B-AWQ", "Standard_NC4as_T4_v3", "float16"),
        ("ministral-3-8b-instruct", "Standard_NV36ads_A10_v5", "auto"),
    ],
)
def test_the_dtype_follows_the_gpu_and_the_weights(model: str, size: str, dtype: str) -> None:
    made = a_plan(model, size)
    assert made.dtype == made.engine["dtype"] == dtype
    if CATALOGUE.get(model).quantization:
        assert made.budget.weights_gib < 1.1 * made.weights_gib


def test_models_with_code_of_their_own_are_the_only_ones_allowed_to_run_it() -> None:
    trusted = {preset.name for preset in CATALOGUE if preset.trust_remote_code}
    assert all(name.startswith(("moonshotai/Kimi", "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL")) for name in trusted)
    made = a_plan("moonshotai/Kimi-K2.5", "Standard_ND96isr_H200_v5")
    assert made.engine["trust-remote-code"] is True


def test_a_model_of_states_gets_no_more_sequences_than_it_has_blocks_for() -> None:
    made = a_plan("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "Standard_NV36ads_A10_v5")
    assert made.engine["max-num-seqs"] < 256
    roomy = a_plan("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "Standard_NC40ads_H100_v5")
    assert roomy.engine["max-num-seqs"] > made.engine["max-num-seqs"]


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        ("phi-4", "Standard_NV12ads_A10_v5", ["slice of a GPU", "Standard_NV36ads_A10_v5"]),
        ("phi-4", "Standard_ND96isr_MI300X_v5", ["AMD", "CUDA"]),
        ("phi-4", "Standard_NV12s_v3", ["M60"]),
        ("gpt-oss-20b", "Standard_NC4as_T4_v3", ["mxfp4", "8.0", "cheapest size that holds it is"]),
        ("gemma-3-4b-instruct", "Standard_NC4as_T4_v3", ["bfloat16"]),
        ("deepseek-ai/DeepSeek-V3.2", "Standard_ND96amsr_A100_v4", ["9.0", "attention"]),
        ("llama-3.3-70b-instruct", "Standard_NC4as_T4_v3", ["needs 20 x", "at most 8", "cheapest"]),
        ("deepseek-r1-0528", "Standard_NC4as_T4_v3", ["however many"]),
    ],
)
def test_what_cannot_run_is_refused_with_what_would(model: str, size: str, words: list[str]) -> None:
    with pytest.raises(DoesNotFit) as raised:
        a_plan(model, size)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_without_a_size_the_cheapest_that_fits_is_taken_and_said() -> None:
    made = a_plan("llama-3.1-8b-instruct", None)
    prices = {}
    for sku in SIZES:
        if sku.suggested and not sku.refusal and sku.usd_per_hour is not None:
            try:
                prices[sku.name] = a_plan("llama-3.1-8b-instruct", sku.name)
            except DoesNotFit:
                continue
    single = [other.hourly_usd for other in prices.values() if other.nodes == 1 and other.hourly_usd is not None]
    assert made.hourly_usd == min(single)
    assert "resource.instanceType is empty" in made.warnings[0]
    assert made.instance_type in made.warnings[0]


def test_caps_on_nodes_and_dollars_become_sentences() -> None:
    with pytest.raises(DoesNotFit, match=r"needs 2 x Standard_NV36ads_A10_v5, and at most 1 nodes"):
        a_plan("phi-4", "Standard_NV36ads_A10_v5", settings=Settings(max_nodes=1))
    with pytest.raises(DoesNotFit, match=r"costs \$32\.77 an hour, and at most \$5\.00 is allowed; the cheapest"):
        a_plan("phi-4", "Standard_ND96amsr_A100_v4", settings=Settings(max_hourly_usd=5))
    with pytest.raises(DoesNotFit, match=r"no size that kaito-ray may choose .* \$0\.10 an hour"):
        a_plan("phi-4", None, settings=Settings(max_hourly_usd=0.1))


def test_autoscaling_gets_nodes_for_the_most_copies() -> None:
    made = a_plan("phi-4", "Standard_NC48ads_A100_v4", autoscaling={"minReplicas": 1, "maxReplicas": 5})
    assert (made.nodes, made.replicas) == (3, 1)
    assert made.autoscaling is not None
    assert (made.autoscaling.min_replicas, made.autoscaling.max_replicas) == (1, 5)
    assert 1 <= made.autoscaling.target_ongoing_requests <= made.engine["max-num-seqs"]
    with pytest.raises(DoesNotFit, match="9 copies of microsoft/phi-4 on 9 x"):
        a_plan("phi-4", A100, autoscaling={"maxReplicas": 9})


@pytest.mark.parametrize(
    ("source", "staged"),
    [
        ({"image": "registry.example.com/a:1", "imagePullSecrets": ["pull"]}, {"image": "registry.example.com/a:1"}),
        ({"urls": ["https://example.com/a.tar.gz"]}, {"urls": ["https://example.com/a.tar.gz"]}),
        ({"urls": ["https://huggingface.co/org/sql-lora"]}, {"hub": "org/sql-lora"}),
        ({"urls": ["https://huggingface.co/org/sql-lora/tree/v2/"]}, {"hub": "org/sql-lora", "revision": "v2"}),
        (
            {"urls": ["https://huggingface.co/org/sql-lora/resolve/main/a.zip"]},
            {"urls": ["https://huggingface.co/org/sql-lora/resolve/main/a.zip"]},
        ),
        ({"workspace": "tuned"}, {"workspace": "tuned"}),
        ({"volumeSource": {"persistentVolumeClaim": {"claimName": "a"}}}, {"path": "/mnt/adapters/legal"}),
    ],
)
def test_an_adapter_is_staged_from_where_it_is(source: dict[str, Any], staged: dict[str, Any]) -> None:
    made = a_plan(adapters=[{"source": {"name": "legal"} | source, "strength": "0.5"}])
    (adapter,) = made.adapters
    assert (adapter.name, dict(adapter.source), adapter.strength) == ("legal", staged, 0.5)
    assert made.pull_secrets == tuple(source.get("imagePullSecrets", ()))
    assert [volume["mount"] for volume in made.volumes] == ([staged["path"]] if "path" in staged else [])


def test_adapters_of_a_model_that_takes_none_are_refused() -> None:
    adapters = [{"source": {"name": "legal", "image": "registry.example.com/a:1"}}]
    with pytest.raises(InvalidManifest, match=r"inference\.adapters: tiiuae/falcon-7b cannot take adapters"):
        a_plan("falcon-7b", adapters=adapters)
    with pytest.raises(InvalidManifest, match="enable-lora is false"):
        a_plan(vllm={"enable-lora": False}, adapters=adapters)


def test_a_configmap_wins_over_ours_and_is_counted_with() -> None:
    made = a_plan("llama-3.1-8b-instruct", "Standard_NV72ads_A10_v5", vllm={"max-model-len": 32768, "seed": 7})
    assert (made.max_model_len, made.tensor_parallel, made.engine["seed"]) == (32768, 2, 7)
    forced = a_plan("phi-4-mini-instruct", "Standard_NC96ads_A100_v4", vllm={"tensor-parallel-size": "4"})
    assert (forced.tensor_parallel, forced.replicas) == (4, 1)
    with pytest.raises(DoesNotFit, match="tensor-parallel-size must divide its 24 heads"):
        a_plan("phi-4-mini-instruct", "Standard_NC96ads_A100_v4", vllm={"tensor-parallel-size": 5})
    with pytest.raises(DoesNotFit, match="at most 4096 tokens"):
        a_plan(vllm={"max-model-len": 8192})
    named = a_plan(vllm={"served-model-name": "phi"})
    assert (named.served_model_name, "served-model-name" in named.engine) == ("phi", False)


def test_a_context_from_the_command_line_wins_over_the_configmap() -> None:
    made = a_plan("llama-3.1-8b-instruct", vllm={"max-model-len": 32768}, context=4096)
    assert made.max_model_len == made.engine["max-model-len"] == 4096


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"kaito.sh/runtime": "transformers"}, "vLLM only"),
        ({"kaito.sh/model-mirror-storage-class": "x"}, "does not stream weights"),
        ({"kaito.sh/model-streaming": "enabled"}, "does not stream weights"),
        ({"inference.kaito.sh/stream-source-type": "x"}, "does not stream weights"),
    ],
)
def test_an_annotation_that_cannot_be_honoured_is_refused(annotations: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidManifest, match=message) as raised:
        a_plan(annotations=annotations)
    assert raised.value.problems[0].path[:2] == ("metadata", "annotations")


def test_annotations_of_kaito_are_honoured() -> None:
    made = a_plan(
        annotations={
            "kaito.sh/enablelb": "True",
            "kaito.sh/performance-mode": "throughput",
            "kaito.sh/use-local-weights": "true",
            "kaito.sh/model-streaming": "disabled",
            "kaito.sh/disable-benchmark": "true",
            "kaito.sh/runtime": "vllm",
            "kaito-ray.io/api-keys": "keys",
        }
    )
    folder = "/opt/kaito/models/microsoft-phi-3-mini-4k-instruct"
    assert made.load_balancer
    assert made.engine["performance-mode"] == "throughput"
    assert (made.source.kind, made.source.reference, made.local_weights_host_path) == ("path", folder, folder)
    assert made.engine["safetensors-load-strategy"] == "prefetch"
    assert made.api_keys_secret == "keys"
    careless = a_plan(annotations={"kaito.sh/enablelb": "true"})
    assert not careless.load_balancer
    assert any('only "True"' in warning for warning in careless.warnings)


def test_the_memory_check_can_be_bypassed_and_still_speaks() -> None:
    tight = a_plan(
        "llama-3.3-70b-instruct", "Standard_NC4as_T4_v3", annotations={"kaito.sh/bypass-resource-checks": "yes"}
    )
    assert (tight.nodes, tight.max_model_len) == (1, 2048)
    assert any("bypassed" in warning and "needs 20 x" in warning for warning in tight.warnings)


def test_a_count_of_nodes_that_changes_nothing_is_mentioned() -> None:
    made = a_plan("phi-4", resource={"count": 3})
    assert made.nodes == 1
    assert any("resource.count 3 is not used" in warning for warning in made.warnings)


def test_a_slice_of_a_gpu_holds_what_fits_it() -> None:
    partition = {"mode": "mig", "profile": "3g.40gb"}
    made = a_plan("phi-4", "Standard_NC96ads_A100_v4", resource={"partition": partition})
    assert (made.gpus_per_node, made.worker.gpus, made.worker.gpu_resource) == (1, 1, "nvidia.com/mig-3g.40gb")
    assert made.budget.gpu_gib == 38.0
    with pytest.raises(DoesNotFit, match=r"phi-4"):
        a_plan(
            "phi-4",
            "Standard_NC96ads_A100_v4",
            resource={"partition": {"mode": "mig", "profile": "1g.5gb"}},
        )


class TestThisMachine:
    def test_a_small_model_is_served_in_float32_without_gpus(self) -> None:
        made = a_plan("smollm2-135m-instruct", cpu_size(2, 16.0))
        assert (made.dtype, made.gpus_per_node, made.max_model_len) == ("float32", 0, 8192)
        assert (made.placement.executor, made.placement.actor_gpus, made.placement.actor_cpus) == ("uni", 0, 2.0)
        assert "gpu-memory-utilization" not in made.engine
        assert made.engine["kv-cache-memory-bytes"] >= 4 * 8192 * 2 * made.kv_bytes_per_token
        assert made.hourly_usd is None
        assert made.engine["enable-lora"] is True

    def test_a_builtin_model_comes_from_nowhere(self) -> None:
        made = a_plan("tiny-phi-3", cpu_size(2, 4.0))
        assert (made.source.kind, made.source.reference) == ("builtin", "tiny-phi-3")
        assert made.max_model_len == 2048

    def test_a_model_too_large_for_the_memory_is_refused_with_both_figures(self) -> None:
        with pytest.raises(DoesNotFit, match=r"phi-3-mini-4k-instruct needs .* GiB .*float32.* this machine has 12\.0"):
            a_plan(size=cpu_size(4, 12.0))

    def test_a_long_context_is_shortened_to_what_fits(self) -> None:
        made = a_plan("phi-3-mini-128k-instruct", cpu_size(8, 32.0))
        assert 512 <= made.max_model_len < 131072
        with pytest.raises(DoesNotFit, match="100000 tokens of context does not fit"):
            a_plan("phi-3-mini-128k-instruct", cpu_size(8, 32.0), context=100_000)

    def test_quantised_weights_are_for_gpus(self) -> None:
        with pytest.raises(DoesNotFit, match="awq"):
            a_plan("Qwen/Qwen3-8B-AWQ", cpu_size(8, 64.0))

    def test_a_folder_of_this_machine_is_read_where_it_is(self) -> None:
        source = {"name": "legal", "volumeSource": {"hostPath": {"path": "/home/me/legal"}}}
        made = a_plan("tiny-phi-3", cpu_size(2, 4.0), adapters=[{"source": source}])
        assert dict(made.adapters[0].source) == {"path": "/home/me/legal"}
