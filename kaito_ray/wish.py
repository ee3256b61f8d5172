# SPDX-License-Identifier: Apache-2.0
"""A Workspace as the API has it in, what it asks for as a plan out. Called by reconcile.py and the webhook.

The ConfigMap that a Workspace names is read here; everything else about a plan is pure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kaito_ray.errors import NotReadyYet, UserError
from kaito_ray.informer import Key
from kaito_ray.kinds import CONFIG_MAP, SECRET, SERVICE, WORKSPACE, Kind
from kaito_ray.names import service_name
from kaito_ray.nodes.candidate import size_in_use
from kaito_ray.plan import Plan, ServePlan, TunePlan, plan
from kaito_ray.plan_served import plan_served_after_tuning
from kaito_ray.preset import Catalogue, Preset
from kaito_ray.references import Reference, references
from kaito_ray.settings import Settings
from kaito_ray.sku import Sizes, Sku
from kaito_ray.workspace import Workspace
from kaito_ray.world import World

_KINDS = {"ConfigMap": CONFIG_MAP, "Secret": SECRET}


@dataclass(frozen=True, slots=True)
class Planner:
    """What plans are made with."""

    catalogue: Catalogue
    sizes: Sizes
    settings: Settings

    def plan(
        self,
        workspace: Workspace,
        config: Mapping[str, str] | None,
        on: str | Sku = "",
        facts: Preset | None = None,
    ) -> Plan:
        """The plan; `config` is the data of the ConfigMap it names. Raises UserError.

        `on` asks for a plan on that size; by default it is the one that the nodes have or get. `facts` are about a
        model that the catalogue does not have (model_facts.py).
        """
        work = workspace.inference or workspace.tuning
        preset = work.preset if work is not None else None
        if preset is None:
            raise UserError(
                "inference.template cannot be run: kaito-ray serves presets only; name one with inference.preset.name",
                reason="TemplateNotSupported",
            )
        sku = on if isinstance(on, Sku) else self._size(on or size_in_use(workspace))
        known = facts or self.catalogue.get(preset.name)
        return plan(workspace, known, sku, self.settings, config=config, sizes=self.sizes)

    def plan_served(
        self, workspace: Workspace, tuned: TunePlan, on: str | Sku, facts: Preset | None, digest: str
    ) -> ServePlan:
        """The plan that serves what was tuned, on the size it was tuned on; `digest` is of what was pushed."""
        known = facts or self.catalogue.get(tuned.model)
        sku = on if isinstance(on, Sku) else self._size(tuned.instance_type)
        return plan_served_after_tuning(workspace, tuned, known, sku, self.settings, sizes=self.sizes, digest=digest)

    def _size(self, name: str) -> Sku | None:
        return self.sizes.get(name) if name else None


def watched_objects(workspace: Workspace) -> list[tuple[Kind, str]]:
    """Kinds and names of what decides about a Workspace, beside what is made for it."""
    named = [(_KINDS.get(one.kind, WORKSPACE), one.name) for one in references(workspace)]
    return [(SERVICE, service_name(workspace.metadata.name)), *named]


def named_objects(workspace: Workspace) -> list[tuple[Kind, Reference]]:
    """The ConfigMaps and Secrets that a Workspace names."""
    return [(_KINDS[one.kind], one) for one in references(workspace) if one.kind in _KINDS]


async def observe_config(world: World, key: Key, workspace: Workspace) -> Mapping[str, str] | None:
    """The data of the ConfigMap that configures the engine or the training; raises NotReadyYet when it is not there."""
    work = workspace.inference or workspace.tuning
    name = work.config if work is not None else ""
    if not name:
        return None
    data = await world.data(CONFIG_MAP, (key[0], name))
    if data is None:
        raise NotReadyYet(_missing(CONFIG_MAP, name, key[0]), reason="ConfigMapMissing")
    return data


async def observe_missing(world: World, key: Key, named: Iterable[tuple[Kind, Reference]]) -> tuple[str, ...]:
    """A sentence for each ConfigMap or Secret that is named but not there."""
    missing = []
    for kind, reference in named:
        data = await world.data(kind, (key[0], reference.name))
        if data is None:
            missing.append(_missing(kind, reference.name, key[0]))
        elif reference.key and reference.key not in data:
            missing.append(f"{kind.kind} {reference.name} in namespace {key[0]} has no key {reference.key}")
    return tuple(missing)


def _missing(kind: Kind, name: str, namespace: str) -> str:
    return f"{kind.kind} {name} is not in namespace {namespace}; it is taken up as soon as it is made"
