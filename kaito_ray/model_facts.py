# SPDX-License-Identifier: Apache-2.0
"""A Workspace in, the facts about its model out, also when the catalogue does not have them. Called by reconcile.py.

KAITO takes any `org/model` of the hub, and so do we. The hub is asked once per Workspace; what it said stands from then
on in a ConfigMap of the Workspace, so that a restart of the operator or a new revision on the hub changes nothing.
"""

import asyncio
import base64

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

_FILE = "preset.json"


class ModelFacts:
    """Facts about models that the catalogue does not have."""

    def __init__(self, applier: Applier, world: World, catalogue: Catalogue) -> None:
        self._applier = applier
        self._world = world
        self._catalogue = catalogue

    async def observe(self, document: KubeObject, workspace: Workspace) -> Preset | None:
        """The facts, where they are not in the catalogue; raises HubRefused, UnknownPreset or NotReadyYet."""
        work = workspace.inference or workspace.tuning
        if work is None or work.preset is None:
            return None
        try:
            self._catalogue.get(work.preset.name)
        except UnknownPreset:
            return self._remembered(document, work.preset.name) or await self._ask(document, work.preset)
        return None

    def _remembered(self, document: KubeObject, name: str) -> Preset | None:
        namespace, workspace = key_of(document)
        found = self._world.child(CONFIG_MAP, (namespace, names.model_facts_name(workspace)))
        data = (found or {}).get("data") or {}
        return Preset.model_validate_json(data[_FILE]) if data.get("model") == name and _FILE in data else None

    async def _ask(self, document: KubeObject, reference: PresetReference) -> Preset:
        namespace, name = key_of(document)
        token = None
        if secret := reference.preset_options.model_access_secret:
            data = await self._world.data(SECRET, (namespace, secret)) or {}
            token = base64.b64decode(data.get(TOKEN_KEY, "")).decode() or None
        preset = await asyncio.to_thread(find_preset, reference.name, self._catalogue, token=token)
        await self._applier.create_once(
            document,
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": names.model_facts_name(name),
                    "namespace": namespace,
                    "labels": names.workspace_labels(name, namespace),
                },
                "data": {"model": reference.name, _FILE: preset.model_dump_json(by_alias=True, exclude_defaults=True)},
            },
        )
        return preset
