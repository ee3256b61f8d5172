# SPDX-License-Identifier: Apache-2.0
"""What `kaito-ray plan` and `kaito-ray presets` do: files or a question in, a report on stdout out.

Called by cli.py. The words are in explain.py, the JSON in plan_record.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from kaito_ray import explain
from kaito_ray.advise import Offer, offers
from kaito_ray.errors import HubRefused, NotReadyYet, UnknownPreset
from kaito_ray.hub import find_preset
from kaito_ray.manifest import examine_manifest
from kaito_ray.manifest_plan import plan_manifest
from kaito_ray.plan import Plan, ServePlan
from kaito_ray.plan_record import offer_record, plan_record, preset_record
from kaito_ray.preset import Catalogue, Preset, load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sizing import Demand
from kaito_ray.sku import Sizes, load_sizes

# A cheaper size is worth a line when it saves this part of the price.
_WORTH_SAYING = 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """One Workspace, or one thing wrong with a file: a plan or what keeps it from having one."""

    name: str
    model: str
    plan: Plan | None
    errors: tuple[str, ...]


def answers_of_files(files: Sequence[Path], settings: Settings, *, context: int | None) -> list[Answer]:
    """An answer for every Workspace of the files, in their order."""
    answers = []
    for file in files:
        manifest = examine_manifest(file, allow_private_urls=settings.allow_private_urls)
        broken = tuple(str(finding) for finding in manifest.findings if finding.severity == "error")
        if broken:
            answers.append(Answer(manifest.file, "", None, broken))
        for planned in plan_manifest(manifest, settings, context=context):
            work = planned.entry.workspace and (planned.entry.workspace.inference or planned.entry.workspace.tuning)
            model = work.preset.name if work and work.preset else ""
            errors = tuple(str(problem) for problem in planned.problems)
            answers.append(Answer(planned.entry.name, model, planned.plan, errors))
    return answers


def answers_of_question(model: str, instance_type: str, settings: Settings, *, context: int | None) -> list[Answer]:
    """The answer for a Workspace that serves `model` on `instance_type`, or on the cheapest size when that is empty."""
    document = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "plan"},
        "resource": {"instanceType": instance_type, "labelSelector": {"matchLabels": {"apps": "plan"}}},
        "inference": {"preset": {"name": model}},
    }
    manifest = examine_manifest(json.dumps(document))
    planned = plan_manifest(manifest, settings, context=context)[0]
    errors = tuple(problem.message for problem in planned.problems)
    name = planned.plan.served_model_name if isinstance(planned.plan, ServePlan) else model
    return [Answer(name, model, planned.plan, errors)]


class Report:
    """Answers as a person or a program reads them, with advice on sizes when it is asked for."""

    def __init__(self, answers: Sequence[Answer], settings: Settings, *, context: int | None, advise: bool) -> None:
        self._answers = answers
        self._settings = settings
        self._context = context
        self._advise = advise
        self._catalogue: Catalogue = load_catalogue(settings.presets_dir)
        self._sizes: Sizes = load_sizes(settings.presets_dir)

    def records(self) -> list[dict[str, Any]]:
        """The JSON list."""
        return [self._record(answer) for answer in self._answers]

    def views(self) -> list[RenderableType]:
        """What a person reads."""
        views: list[RenderableType] = []
        for answer in self._answers:
            views.append(self._view(answer))
            if self._advise and (found := self._offers(answer)) is not None:
                views.append(explain.offers_view(f"sizes that hold {answer.model}", found))
        return views

    def _record(self, answer: Answer) -> dict[str, Any]:
        if answer.plan is not None:
            record = plan_record(answer.plan)
        else:
            record = {"name": answer.name, "model": answer.model or None, "error": "; ".join(answer.errors)}
        record["name"] = answer.name
        if self._advise and (found := self._offers(answer)) is not None:
            record["advice"] = [offer_record(offer) for offer in found]
        return record

    def _view(self, answer: Answer) -> RenderableType:
        plan = answer.plan
        if plan is None:
            return explain.error_view(answer.name, answer.errors)
        sku = self._sizes.get(plan.instance_type)
        if not isinstance(plan, ServePlan):
            return explain.tune_view(plan, sku)
        preset = self._preset(plan.model)
        return explain.serve_view(answer.name, plan, preset, sku, self._better(plan, preset))

    def _preset(self, model: str) -> Preset:
        return find_preset(model, self._catalogue)

    def _better(self, plan: ServePlan, preset: Preset) -> Offer | None:
        """A size that holds the same context on fewer nodes for no more, or on as many for clearly less."""
        price = plan.hourly_usd
        if price is None:
            return None
        demand = Demand(context=plan.max_model_len, lora=preset.lora)
        candidates = [sku for sku in self._sizes if sku.suggested]
        found = offers(preset, candidates, demand, max_nodes=plan.nodes, max_hourly_usd=price)
        fewer = [offer for offer in found if offer.sizing.nodes < plan.nodes]
        less = [
            offer for offer in found if offer.hourly_usd is not None and offer.hourly_usd < price * (1 - _WORTH_SAYING)
        ]
        return next(iter([*fewer, *less]), None)

    def _offers(self, answer: Answer) -> list[Offer] | None:
        """Sizes for what the answer is about; None when it is not about serving a known model."""
        if answer.plan is not None and not isinstance(answer.plan, ServePlan):
            return None
        try:
            preset = self._preset(answer.model)
        except (UnknownPreset, HubRefused, NotReadyYet):
            return None
        return offers(
            preset,
            self._sizes,
            Demand(context=self._context, lora=preset.lora),
            max_nodes=self._settings.max_nodes,
            max_hourly_usd=self._settings.max_hourly_usd,
        )


def preset_offers(preset: Preset, settings: Settings) -> list[Offer]:
    """The sizes a preset fits on, for `kaito-ray presets NAME`."""
    sizes = load_sizes(settings.presets_dir)
    return offers(preset, sizes, Demand(lora=preset.lora), max_nodes=settings.max_nodes)


def preset_details(preset: Preset, settings: Settings) -> dict[str, Any]:
    """One preset as JSON, with the sizes it fits on and, when it is built here, the folder of its files."""
    record = preset_record(preset)
    record["sizes"] = [offer_record(offer) for offer in preset_offers(preset, settings)]
    if preset.source == "builtin":
        from kaito_ray.tiny_model import model_path

        record["path"] = str(model_path())
    return record
