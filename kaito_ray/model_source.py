# SPDX-License-Identifier: Apache-2.0
"""A Workspace, its preset, size and the settings in; where the pods get the model from, and into which volume, out.

Called by plan_serve.py and plan_tune.py. What a person names wins: the node's own weights, a claim, an image; then the
preset's own place, which is its image in the registry of the settings, or the hub at a pinned revision. On this machine
there are no volumes: `kaito-ray run` has a cache of its own.
"""

from dataclasses import replace

from kaito_ray import names
from kaito_ray.artifacts.licence import PERMISSIVE
from kaito_ray.errors import InvalidManifest, Problem
from kaito_ray.plan import ModelSource, ModelVolume
from kaito_ray.preset import Preset
from kaito_ray.settings import Settings
from kaito_ray.sku import Sku
from kaito_ray.source_rules import is_dns_subdomain
from kaito_ray.workspace import PresetReference, Workspace

# Where KAITO's nodes keep weights that were put there beforehand (its labels.go).
_LOCAL_WEIGHTS = "/opt/kaito/models"


def model_source(
    workspace: Workspace, reference: PresetReference | None, preset: Preset, sku: Sku, settings: Settings
) -> ModelSource:
    """Raises InvalidManifest when annotations and fields name several places, or one that cannot be."""
    given = workspace.metadata.annotations
    options = reference.preset_options if reference is not None else None
    image = options.image if options is not None else ""
    local = given.get(names.ANNOTATION_LOCAL_WEIGHTS) == "true"
    claim = given.get(names.ANNOTATION_MODEL_CLAIM, "")
    if problems := _problems(preset, local=local, claim=claim, image=image):
        raise InvalidManifest(problems)
    called = tuple(dict.fromkeys((preset.name, *preset.aliases, preset.served_name)))
    source = ModelSource(preset.source, preset.name, preset.revision, called, preset.architecture)
    if local:
        path = f"{_LOCAL_WEIGHTS}/{preset.name.lower().replace('/', '-')}"
        return replace(source, kind="path", reference=path, revision=None, volume=ModelVolume("host", path))
    if claim:
        volume = ModelVolume("claim", claim.rstrip("/"))
        return replace(source, kind="path", reference=claim, revision=None, volume=volume)
    image = image or _own_image(preset, settings)
    if image:
        secrets = tuple(dict.fromkeys(options.image_pull_secrets)) if options is not None else ()
        source = replace(source, kind="image", reference=image, revision=None, pull_secrets=secrets)
    if source.kind == "builtin" or sku.is_this_machine:
        return source
    return replace(source, volume=_volume(source, sku, settings))


def _own_image(preset: Preset, settings: Settings) -> str:
    """The preset's public image, where there is one and its licence lets the model be passed on."""
    if not (settings.preset_registry and preset.image and preset.license in PERMISSIVE):
        return ""
    return f"{settings.preset_registry.rstrip('/')}/{preset.image}"


def _volume(source: ModelSource, sku: Sku, settings: Settings) -> ModelVolume:
    """The image itself where the cluster can mount it, else the fastest disk that the settings know of."""
    if source.kind == "image" and settings.image_volumes:
        return ModelVolume("image", source.reference)
    if settings.nvme_storage_class and sku.nvme:
        return ModelVolume("class", settings.nvme_storage_class)
    if settings.model_cache_dir:
        return ModelVolume("node", settings.model_cache_dir)
    return ModelVolume("pod")


def _problems(preset: Preset, *, local: bool, claim: str, image: str) -> list[Problem]:
    problems = []
    claimed = ("metadata", "annotations", names.ANNOTATION_MODEL_CLAIM)
    if local and preset.source != "hub":
        path = ("metadata", "annotations", names.ANNOTATION_LOCAL_WEIGHTS)
        problems.append(Problem(path, f"is of no use for {preset.name}, which is made on the spot"))
    places = {
        f"annotation {names.ANNOTATION_LOCAL_WEIGHTS}": local,
        f"annotation {names.ANNOTATION_MODEL_CLAIM}": bool(claim),
        "presetOptions.image": bool(image),
    }
    named = [place for place, is_named in places.items() if is_named]
    if len(named) > 1:
        message = f"the model can come from one place only, got {' and '.join(named)}"
        problems.append(Problem(claimed if claim else ("metadata", "annotations"), message))
    name, _, folder = claim.partition("/")
    if claim and not is_dns_subdomain(name):
        problems.append(Problem(claimed, f'must be the name of a claim, or claim/folder, got "{claim}"'))
    if claim and ".." in folder.split("/"):
        problems.append(Problem(claimed, f'must not lead out of the claim, got "{claim}"'))
    return problems
