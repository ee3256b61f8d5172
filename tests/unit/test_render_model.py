# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from in; the volume, the container that fetches and the folder of the engine out."""

import json
from dataclasses import replace
from typing import Any

import pytest

from builders import SOURCE, a_serve_plan, a_tune_plan
from kaito_ray.plan import ModelSource, ModelVolume, Plan
from kaito_ray.render.objects import render
from kaito_ray.serve_config import serve_config
from kaito_ray.settings import Settings
from schemas import SHARED, pod_templates, problems

IMAGE = "registry.example/models/phi-3:1.0"
FROM_IMAGE = replace(SOURCE, kind="image", reference=IMAGE, revision=None, pull_secrets=("pull-b", "pull-a"))
VOLUMES = [
    ModelVolume("pod"),
    ModelVolume("node", "/mnt/nvme/models"),
    ModelVolume("class", "kaito-local-nvme-disk"),
    ModelVolume("image", IMAGE),
    ModelVolume("claim", "models/phi-3"),
    ModelVolume("host", "/opt/kaito/models/phi-3"),
]


def objects(plan: Plan, **settings: Any) -> list[dict[str, Any]]:
    return render(plan, Settings(**settings))


def worker(plan: Plan, **settings: Any) -> dict[str, Any]:
    [spec] = [
        template["spec"]
        for thing in objects(plan, **settings)
        for _, template in pod_templates(thing)
        if template["spec"]["containers"][0]["name"] == "ray-worker"
    ]
    assert isinstance(spec, dict)
    return spec


def fetching(spec: dict[str, Any]) -> dict[str, Any]:
    [container] = [one for one in spec["initContainers"] if one["name"] == "fetch-model"]
    assert isinstance(container, dict)
    return container


def engine_folder(source: ModelSource) -> str:
    [application] = serve_config(a_serve_plan(source=source))["applications"]
    assert application["args"]["model"]["kind"] == "path"
    return str(application["args"]["model"]["reference"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the CRDs beside the checkout")
@pytest.mark.parametrize("volume", VOLUMES, ids=lambda volume: volume.kind)
@pytest.mark.parametrize("make", [a_serve_plan, a_tune_plan])
def test_api_server_and_kuberay_accept_every_kind_of_volume(make: Any, volume: ModelVolume) -> None:
    for thing in objects(make(source=replace(FROM_IMAGE, volume=volume))):
        assert problems(thing) == []


def test_a_model_is_fetched_before_ray_starts() -> None:
    spec = worker(a_serve_plan())
    fetch = fetching(spec)
    assert fetch["command"][:3] == ["python", "-m", "kaito_ray.model_fetch"]
    wish = json.loads(fetch["command"][3])
    assert wish["source"] == {"hub": SOURCE.reference, "revision": SOURCE.revision}
    assert wish["architecture"] == "Phi3ForCausalLM"
    [written] = [mount for mount in fetch["volumeMounts"] if mount["name"] == "model"]
    [read] = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "model"]
    assert "readOnly" not in written
    assert read["readOnly"] is True
    # The engine looks where the container puts the link.
    assert engine_folder(SOURCE) == f"{read['mountPath']}/{wish['link']}"


@pytest.mark.parametrize("make", [a_serve_plan, a_tune_plan])
def test_only_the_fetch_gets_the_logins_of_the_registry(make: Any) -> None:
    spec = worker(make(source=FROM_IMAGE))
    fetch = fetching(spec)
    [auth] = [mount for mount in fetch["volumeMounts"] if mount["name"] == "model-registry"]
    assert auth["readOnly"] is True
    assert not [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "model-registry"]
    [volume] = [volume for volume in spec["volumes"] if volume["name"] == "model-registry"]
    assert [one["secret"]["name"] for one in volume["projected"]["sources"]] == ["pull-a", "pull-b"]
    wish = json.loads(fetch["command"][3])
    assert wish["source"] == {"image": IMAGE, "imagePullSecrets": ["pull-b", "pull-a"]}


@pytest.mark.parametrize("make", [a_serve_plan, a_tune_plan])
def test_only_the_fetch_gets_the_token_of_the_hub(make: Any) -> None:
    spec = worker(make(hf_token_secret="hub"))
    [token] = [one for one in fetching(spec)["env"] if one["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "HF_TOKEN", "optional": True}
    assert "HF_TOKEN" not in [one["name"] for one in spec["containers"][0]["env"]]
    without = worker(make(source=FROM_IMAGE, hf_token_secret="hub"))
    assert "HF_TOKEN" not in [one["name"] for one in fetching(without)["env"]]


def test_engines_stay_off_the_hub_but_the_fetch_does_not() -> None:
    spec = worker(a_serve_plan())
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in spec["containers"][0]["env"]
    assert [one["name"] for one in fetching(spec)["env"]] == ["HOME", "USER"]


def test_the_folder_of_a_node_is_made_writable_and_limited() -> None:
    source = replace(FROM_IMAGE, volume=ModelVolume("node", "/mnt/nvme/models"))
    spec = worker(a_serve_plan(source=source), model_cache_gib=500)
    [volume] = [volume for volume in spec["volumes"] if volume["name"] == "model"]
    assert volume["hostPath"] == {"path": "/mnt/nvme/models", "type": "DirectoryOrCreate"}
    prepare, fetch = spec["initContainers"]
    assert prepare["command"][-2:] == ["/var/lib/kaito-ray/models", "1000:1000"]
    assert prepare["securityContext"]["runAsUser"] == 0
    assert prepare["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert json.loads(fetch["command"][3])["limit_gib"] == 500
    assert "runAsUser" not in fetch["securityContext"]


def test_a_claim_per_pod_holds_the_model_twice() -> None:
    source = replace(FROM_IMAGE, volume=ModelVolume("class", "kaito-local-nvme-disk"))
    [volume] = [one for one in worker(a_serve_plan(source=source))["volumes"] if one["name"] == "model"]
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["storageClassName"] == "kaito-local-nvme-disk"
    assert claim["resources"]["requests"]["storage"] == "23Gi"  # twice 7.12 GiB and some


def test_an_image_volume_needs_no_fetching_but_the_kubelets_secrets() -> None:
    source = replace(FROM_IMAGE, volume=ModelVolume("image", IMAGE))
    spec = worker(a_serve_plan(source=source))
    assert "initContainers" not in spec
    assert spec["imagePullSecrets"] == [{"name": "pull-b"}, {"name": "pull-a"}]
    [volume] = [one for one in spec["volumes"] if one["name"] == "model"]
    assert volume["image"] == {"reference": IMAGE, "pullPolicy": "IfNotPresent"}
    assert engine_folder(source) == "/var/lib/kaito-ray/models"


@pytest.mark.parametrize(
    ("claim", "name", "folder"),
    [
        ("models/phi-3/v2", "models", "/var/lib/kaito-ray/models/phi-3/v2"),
        ("models", "models", "/var/lib/kaito-ray/models"),
    ],
)
def test_a_claim_is_read_where_the_model_lies(claim: str, name: str, folder: str) -> None:
    source = replace(SOURCE, kind="path", reference=claim, volume=ModelVolume("claim", claim))
    spec = worker(a_serve_plan(source=source))
    [volume] = [one for one in spec["volumes"] if one["name"] == "model"]
    assert volume["persistentVolumeClaim"] == {"claimName": name, "readOnly": True}
    assert "initContainers" not in spec
    assert engine_folder(source) == folder


def test_weights_of_the_node_are_mounted_where_they_are() -> None:
    path = "/opt/kaito/models/phi-3"
    source = replace(SOURCE, kind="path", reference=path, volume=ModelVolume("host", path))
    spec = worker(a_serve_plan(source=source))
    [mount] = [one for one in spec["containers"][0]["volumeMounts"] if one["name"] == "model"]
    assert mount == {"name": "model", "mountPath": path, "readOnly": True}
    assert engine_folder(source) == path


def test_a_tuning_job_reads_the_same_folder() -> None:
    [arguments] = [thing for thing in objects(a_tune_plan()) if thing["kind"] == "ConfigMap"]
    model = json.loads(arguments["data"]["arguments.json"])["model"]
    assert (model["kind"], model["reference"]) == ("path", engine_folder(SOURCE))


def test_what_is_made_on_the_spot_is_not_fetched() -> None:
    spec = worker(a_serve_plan(source=ModelSource("builtin", "tiny-phi-3")))
    assert "initContainers" not in spec
    assert [volume["name"] for volume in spec["volumes"]] == ["cache", "registry"]
