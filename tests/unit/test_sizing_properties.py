# SPDX-License-Identifier: Apache-2.0
"""What must hold for any model and any GPU, also for those nobody has built."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from kaito_ray.errors import KaitoRayError
from kaito_ray.preset import CacheLayers, Preset
from kaito_ray.sizing import Demand, size_model
from kaito_ray.sku import Sku


@st.composite
def models(draw: st.DrawFn) -> Preset:
    """A model of any size and kind of attention."""
    head_dim = draw(st.sampled_from([32, 64, 80, 128, 256]))
    kv_heads = draw(st.integers(1, 16))
    heads = kv_heads * draw(st.integers(1, 16))
    layers = draw(st.integers(1, 128))
    other = draw(st.integers(0, layers - 1))
    kinds = {
        "sliding": {"window": draw(st.sampled_from([128, 1024, 4096]))},
        "recurrent": {"state_bytes": draw(st.integers(1, 5_000_000))},
        "compressed": {"window": 128, "ratio": draw(st.sampled_from([4, 128])), "entry_bytes": 584},
        "none": {},
    }
    kind = draw(st.sampled_from(sorted(kinds)))
    cache = [CacheLayers(layers=layers - other, kind="full", entry_bytes=584 if kind == "compressed" else None)]
    if other:
        cache.append(CacheLayers.model_validate({"layers": other, "kind": kind} | kinds[kind]))
    latent = draw(st.booleans()) and kind in ("none", "recurrent")
    return Preset(
        name="any/model",
        license="mit",
        architecture="AnyForCausalLM",
        weights_gib=draw(st.floats(0.01, 900)),
        context=draw(st.integers(1, 2_000_000)),
        hidden_size=heads * head_dim,
        vocab_size=draw(st.integers(1000, 300_000)),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        kv_lora_rank=512 if latent else None,
        qk_rope_head_dim=64 if latent else None,
        mixture_of_experts=draw(st.booleans()),
        multimodal=draw(st.booleans()),
        lora=draw(st.booleans()),
        cache=tuple(cache),
    )


@st.composite
def sizes(draw: st.DrawFn) -> Sku:
    """A node with any GPUs from Volta on."""
    return Sku(
        name="Any_Size",
        gpu=draw(st.sampled_from(["NVIDIA A100", "NVIDIA X"])),
        gpus=draw(st.sampled_from([1, 2, 4, 8])),
        memory_gib=draw(st.floats(4, 300)),
        compute_capability=draw(st.sampled_from([7.0, 8.0, 9.0, 12.0])),
        vcpus=8,
        ram_gb=64,
    )


def gpus_of_a_copy(preset: Preset, sku: Sku, context: int) -> tuple[int, int] | None:
    """Nodes and GPUs that one copy takes, None when it does not fit."""
    try:
        sizing = size_model(preset, sku, Demand(context=context, lora=preset.lora), max_nodes=8)
    except KaitoRayError:
        return None
    return sizing.nodes, sizing.shape.gpus


@settings(max_examples=300, deadline=None)
@given(preset=models(), sku=sizes(), data=st.data())
def test_more_context_never_needs_fewer_gpus(preset: Preset, sku: Sku, data: st.DataObject) -> None:
    more = data.draw(st.integers(1, preset.context))
    less = data.draw(st.integers(1, more))
    for_more = gpus_of_a_copy(preset, sku, more)
    if for_more is not None:
        for_less = gpus_of_a_copy(preset, sku, less)
        assert for_less is not None
        assert for_less <= for_more


@settings(max_examples=300, deadline=None)
@given(preset=models(), sku=sizes(), factor=st.floats(1, 4), data=st.data())
def test_a_bigger_gpu_never_needs_more(preset: Preset, sku: Sku, factor: float, data: st.DataObject) -> None:
    context = data.draw(st.integers(1, preset.context))
    needed = gpus_of_a_copy(preset, sku, context)
    if needed is not None:
        bigger = sku.model_copy(update={"memory_gib": sku.memory_gib * factor})
        with_bigger = gpus_of_a_copy(preset, bigger, context)
        assert with_bigger is not None
        assert with_bigger <= needed


@settings(max_examples=300, deadline=None)
@given(
    preset=models(),
    sku=sizes(),
    demand=st.builds(
        Demand,
        context=st.none() | st.integers(1, 3_000_000),
        tensor=st.none() | st.integers(1, 16),
        pipeline=st.none() | st.integers(1, 100),
        sequences=st.none() | st.integers(1, 100_000),
        batched_tokens=st.none() | st.integers(1, 1_000_000),
        kv_cache_dtype=st.sampled_from([None, "auto", "fp8"]),
        utilization=st.none() | st.floats(0.01, 1.0),
        lora=st.booleans(),
    ),
    nodes=st.integers(1, 64),
)
def test_whatever_is_demanded_is_answered(preset: Preset, sku: Sku, demand: Demand, nodes: int) -> None:
    try:
        sizing = size_model(preset, sku, demand, max_nodes=nodes)
    except KaitoRayError:
        return
    assert 1 <= sizing.nodes <= nodes
    assert sizing.shape.tensor in (demand.tensor, sizing.shape.tensor)
    assert 0 <= sizing.max_model_len <= min(preset.context, demand.context or preset.context)
    assert sizing.replicas >= 1
    assert sizing.load.sequences >= 1
    again = size_model(preset, sku, replace(demand, context=sizing.max_model_len), max_nodes=nodes)
    assert again.nodes <= sizing.nodes
