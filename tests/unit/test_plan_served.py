# SPDX-License-Identifier: Apache-2.0
"""A Workspace that has tuned its model in; the plan and the Serve config that answer with the result, out."""

from typing import Any

import pytest

from builders import a_tune_plan, a_workspace
from kaito_ray.errors import DoesNotFit, InvalidManifest
from kaito_ray.plan import ServePlan, TunePlan, plan
from kaito_ray.plan_served import plan_served_after_tuning, releases_nodes
from kaito_ray.preset import load_catalogue
from kaito_ray.serve_config import serve_config
from kaito_ray.settings import Settings
from kaito_ray.sku import load_sizes

CATALOGUE, SIZES = load_catalogue(), load_sizes()
IMAGE = {"image": "registry.example/team/pirate:1", "imagePushSecret": "push"}
VOLUME = {"volumeSource": {"persistentVolumeClaim": {"claimName": "result"}}}
DIGEST = f"sha256:{'a' * 64}"


def served(
    output: dict[str, Any],
    *,
    model: str = "phi-3-mini-4k-instruct",
    size: str = "Standard_NC24ads_A100_v4",
    count: int = 1,
    rank: int | None = None,
    digest: str = "",
) -> ServePlan:
    workspace = a_workspace(
        name="pirate",
        resource={"instanceType": size, "count": count, "labelSelector": {"matchLabels": {"app": "pirate"}}},
        tuning={
            "preset": {"name": model},
            "method": "qlora",
            "input": {"urls": ["https://data.example/a.jsonl"]},
            "output": output,
        },
    )
    preset, sku = CATALOGUE.get(model), SIZES.get(size)
    config = {"training_config.yaml": f"training_config: {{LoraConfig: {{r: {rank}}}}}"} if rank else None
    tuned = plan(workspace, preset, sku, Settings(), config=config)
    assert isinstance(tuned, TunePlan)
    return plan_served_after_tuning(workspace, tuned, preset, sku, Settings(), digest=digest)


def test_the_adapter_carries_the_workspaces_name_and_answers_by_default() -> None:
    made = served(IMAGE, digest=DIGEST)
    [adapter] = made.adapters
    assert (adapter.name, made.default_adapter, made.served_model_name) == (
        "pirate",
        "pirate",
        "phi-3-mini-4k-instruct",
    )
    assert dict(adapter.source) == {"image": IMAGE["image"], "digest": DIGEST}
    assert made.pull_secrets == ("push",)
    [deployment] = serve_config(made)["applications"][0]["deployments"]
    assert deployment["user_config"]["default_adapter"] == "pirate"


def test_an_adapter_on_a_volume_is_mounted() -> None:
    made = served(VOLUME)
    [adapter], [volume] = made.adapters, made.volumes
    assert dict(adapter.source) == {"path": volume["mount"]}
    assert volume["source"] == VOLUME["volumeSource"]


@pytest.mark.parametrize(("rank", "slots"), [(None, 8), (9, 16), (64, 64), (200, 256)])
def test_the_engine_takes_the_rank_that_was_tuned(rank: int | None, slots: int) -> None:
    assert served(IMAGE, rank=rank).engine["max-lora-rank"] == slots


def test_it_serves_on_the_nodes_that_tuned_and_on_no_others() -> None:
    assert served(IMAGE, count=2).nodes == 1
    with pytest.raises(DoesNotFit):
        served(IMAGE, model="qwen2.5-coder-32b-instruct", size="Standard_NV36ads_A10_v5")


def test_a_workspace_that_serves_has_nothing_to_serve_after_tuning() -> None:
    workspace = a_workspace()
    preset, sku = CATALOGUE.get("phi-3-mini-4k-instruct"), SIZES.get("Standard_NC24ads_A100_v4")
    with pytest.raises(InvalidManifest, match="nothing that was tuned"):
        plan_served_after_tuning(workspace, a_tune_plan(), preset, sku, Settings())


@pytest.mark.parametrize(("value", "releases"), [("release", True), ("serve", False), (None, False)])
def test_nodes_are_given_back_on_request(value: str | None, releases: bool) -> None:
    annotations = {"kaito-ray.io/after-tuning": value} if value else {}
    assert releases_nodes(a_workspace(annotations=annotations)) is releases
