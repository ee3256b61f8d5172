# SPDX-License-Identifier: Apache-2.0
"""A Workspace in, the facts about its model out, also when the catalogue does not have them. Called by reconcile.py.

KAITO takes any `org/model` of the hub, and so do we. The hub is asked once per Workspace; what it said stands from then
on in a ConfigMap of the Workspace, so that a restart of the operator or a new revision on the hub changes nothing.
"""

import asyncio
import base64

from pydantic import ValidationError

from kaito_ray import names
from kaito_ray.apply import Applier
from kaito_ray.cluster import KubeObject
from kaito_ray.errors import UnknownPreset
from kaito_ray.hub import TOKEN_KEY, find_preset
from kaito_ray.informer import key_of
from kaito_ray.kinds import CONFIG_MAP, SECRET
from kaito_ray.preset import Catalogue, Preset
from kaito_ray.workspace import PresetReference, Workspace
from kaito_ray.world import World

_MODEL, _FILE = "model", "preset.json"


class ModelFacts:
    """Facts about models that the catalogue does not have."""

    def __init__(self, applier: Applier, world: World, catalogue: Catalogue) -> None:
        self._applier = applier
        self._world = world
        self._catalogue = catalogue

    async def observe(self, document: KubeObject, workspace: Workspace) -> Preset | None:
        """The facts, where they are not in the catalogue; raises HubRefused, UnknownPreset or NotReadyYet."""
        preset = _named(workspace)
        if preset is None:
            return None
        try:
            self._catalogue.get(preset.name)
        except UnknownPreset:
            return remembered_facts(self._world, workspace) or await self._ask(document, preset)
        return None

    async def _ask(self, document: KubeObject, reference: PresetReference) -> Preset:
        namespace, name = key_of(document)
        token = None
        if secret := reference.preset_options.model_access_secret:
            data = await self._world.data(SECRET, (namespace, secret)) or {}
            token = base64.b64decode(data.get(TOKEN_KEY, "")).decode() or None
        preset = await asyncio.to_thread(find_preset, reference.name, self._catalogue, token=token)
        facts = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": names.model_facts_name(name),
                "namespace": namespace,
                "labels": names.workspace_labels(name, namespace),
            },
            "data": {_MODEL: reference.name, _FILE: preset.model_dump_json(by_alias=True, exclude_defaults=True)},
        }
        await self._applier.create_once(document, facts, anew=True)
        return preset


def remembered_facts(world: World, workspace: Workspace) -> Preset | None:
    """What the hub said about the model that the Workspace names now, while this Workspace lives."""
    reference, metadata = _named(workspace), workspace.metadata
    found = world.child(CONFIG_MAP, (metadata.namespace, names.model_facts_name(metadata.name)))
    if found is None or reference is None:
        return None
    owners = [owner["uid"] for owner in found["metadata"].get("ownerReferences") or ()]
    data = found.get("data") or {}
    if metadata.uid not in owners or data.get(_MODEL) != reference.name:
        return None
    try:
        return Preset.model_validate_json(data.get(_FILE, ""))
    except ValidationError:  # edited by somebody, or of another release
        return None


def _named(workspace: Workspace) -> PresetReference | None:
    work = workspace.inference or workspace.tuning
    return work.preset if work is not None else None
