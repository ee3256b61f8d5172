# SPDX-License-Identifier: Apache-2.0
"""A Workspace, its preset and the settings in; where the model comes from, and into which volume, out."""

from dataclasses import replace
from typing import Any

import pytest

from builders import a_workspace
from kaito_ray.artifacts.model_files import choose_files, choose_for_transformers
from kaito_ray.errors import InvalidManifest
from kaito_ray.model_source import model_source
from kaito_ray.plan import ModelSource, ModelVolume
from kaito_ray.preset import load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sku import load_sizes, local_size

CATALOGUE, SIZES = load_catalogue(), load_sizes()
PHI_3 = CATALOGUE.get("phi-3-mini-4k-instruct")
IMAGE = "registry.example/models/phi-3:1.0"
CLAIM = "kaito-ray.io/model-claim"
LOCAL = "kaito.sh/use-local-weights"


def source(
    preset: str = "phi-3-mini-4k-instruct",
    size: str = "Standard_NV36ads_A10_v5",
    *,
    annotations: dict[str, str] | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> ModelSource:
    workspace = a_workspace(
        metadata={"name": "phi", "annotations": annotations or {}},
        inference={"preset": {"name": preset, "presetOptions": options}},
    )
    assert workspace.inference is not None
    sku = local_size() if size == "local" else SIZES.get(size)
    return model_source(workspace, workspace.inference.preset, CATALOGUE.get(preset), sku, settings or Settings())


def test_the_hub_at_the_revision_of_the_preset() -> None:
    made = source()
    assert (made.kind, made.reference, made.revision) == ("hub", PHI_3.name, PHI_3.revision)
    assert made.architecture == "Phi3ForCausalLM"
    assert {PHI_3.name, "phi-3-mini-4k-instruct"} <= set(made.names)
    assert made.volume == ModelVolume("pod")


def test_an_image_with_its_secrets() -> None:
    made = source(image=IMAGE, imagePullSecrets=["a", "b", "a"])
    assert (made.kind, made.reference, made.revision, made.pull_secrets) == ("image", IMAGE, None, ("a", "b"))
    # The tiny model is made on the spot, unless somebody has it as an image.
    assert source("tiny-phi-3", image=IMAGE).kind == "image"
    assert source("tiny-phi-3").kind == "builtin"


NVME, NO_NVME = "Standard_NC24ads_A100_v4", "Standard_NV36ads_A10_v5"


@pytest.mark.parametrize(
    ("settings", "size", "options", "volume"),
    [
        ({}, NVME, {}, ModelVolume("pod")),
        ({"nvme_storage_class": "nvme"}, NVME, {}, ModelVolume("class", "nvme")),
        ({"nvme_storage_class": "nvme"}, NO_NVME, {}, ModelVolume("pod")),
        ({"nvme_storage_class": "nvme", "model_cache_dir": "/mnt/m"}, NO_NVME, {}, ModelVolume("node", "/mnt/m")),
        ({"model_cache_dir": "/mnt/m", "image_volumes": True}, NVME, {}, ModelVolume("node", "/mnt/m")),
        ({"image_volumes": True}, NVME, {"image": IMAGE}, ModelVolume("image", IMAGE)),
        ({"model_cache_dir": "/mnt/m"}, "local", {"image": IMAGE}, None),
    ],
)
def test_the_volume_follows_from_size_and_settings(
    settings: dict[str, Any], size: str, options: dict[str, Any], volume: ModelVolume | None
) -> None:
    assert source(size=size, settings=Settings(**settings), **options).volume == volume


def test_a_claim_and_the_weights_of_the_node() -> None:
    claimed = source(annotations={CLAIM: "models/phi-3"})
    assert (claimed.kind, claimed.volume) == ("path", ModelVolume("claim", "models/phi-3"))
    local = source(annotations={LOCAL: "true"})
    assert local.volume == ModelVolume("host", "/opt/kaito/models/microsoft-phi-3-mini-4k-instruct")
    assert local.folder == local.reference


def test_the_image_of_a_preset_where_its_licence_permits() -> None:
    settings = Settings(preset_registry="mcr.microsoft.com/aks/kaito/")
    made = source(settings=settings, imagePullSecrets=["mirror"])
    assert (made.kind, made.reference) == ("image", "mcr.microsoft.com/aks/kaito/kaito-phi-3-mini-4k-instruct:0.2.0")
    assert made.pull_secrets == ("mirror",)
    assert source(settings=settings, image=IMAGE).reference == IMAGE
    assert source("llama-3.1-8b-instruct", NVME, settings=settings).kind == "hub"


@pytest.mark.parametrize(
    ("annotations", "options", "words"),
    [
        ({LOCAL: "true", CLAIM: "models"}, {}, "one place only"),
        ({CLAIM: "models"}, {"image": IMAGE}, "one place only"),
        ({LOCAL: "true"}, {"image": IMAGE}, "one place only"),
        ({CLAIM: "Models/phi"}, {}, "name of a claim"),
        ({CLAIM: "models/../other"}, {}, "must not lead out"),
    ],
)
def test_places_that_cannot_be(annotations: dict[str, str], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidManifest, match=words):
        source(annotations=annotations, **options)


def test_who_trains_reads_another_form_than_who_serves() -> None:
    files = ["config.json", "consolidated.safetensors", "model-00001-of-00002.safetensors", "params.json", "x.bin"]
    assert choose_files(files) == ["config.json", "consolidated.safetensors", "params.json"]
    assert choose_for_transformers(files) == ["config.json", "model-00001-of-00002.safetensors", "params.json"]
    assert choose_for_transformers(files[:2]) == files[:2]
    serves = source()
    assert serves.folder != replace(serves, form="transformers").folder
