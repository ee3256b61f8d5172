# SPDX-License-Identifier: Apache-2.0
"""A tuning Workspace whose tuning succeeded in; the plan that serves its model with the new adapter out.

The reconcile and the local run call it with what tuning made; plan_tune.py calls it beforehand, to tell whether serving
will fit on the same nodes. The adapter carries the Workspace's name, `/chat` answers with it unless a request says
otherwise, and the base model stays there under its own name.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kaito_ray.errors import InvalidManifest, Problem
from kaito_ray.inference_config import InferenceConfig
from kaito_ray.names import ANNOTATION_AFTER_TUNING
from kaito_ray.plan import ServePlan, TunePlan
from kaito_ray.plan_serve import plan_serve
from kaito_ray.preset import Preset
from kaito_ray.settings import Settings
from kaito_ray.sku import Sizes, Sku
from kaito_ray.source_rules import placeholders
from kaito_ray.workspace import Inference, Tuning, Workspace

# What vLLM 0.32 takes as max-lora-rank (config/lora.py, MaxLoRARanks).
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def releases_nodes(workspace: Workspace) -> bool:
    """Whether the nodes are given back once tuning is done, instead of serving on them."""
    return workspace.metadata.annotations.get(ANNOTATION_AFTER_TUNING) == "release"


def plan_served_after_tuning(
    workspace: Workspace,
    tuned: TunePlan,
    preset: Preset,
    sku: Sku | None,
    settings: Settings,
    *,
    sizes: Sizes | None = None,
    digest: str = "",
) -> ServePlan:
    """Serve the base model and the adapter that tuning left at its output.

    `tuned` is the plan it was tuned by, and `digest` pins an image to what was pushed. Raises DoesNotFit when the
    unquantised model needs more than the nodes have, InvalidManifest for a Workspace that does not tune.
    """
    tuning = workspace.tuning
    if tuning is None:
        raise InvalidManifest([Problem(("tuning",), "is missing, so there is nothing that was tuned")])
    name = workspace.metadata.name
    document = {"preset": _preset(tuning), "adapters": [{"source": {"name": name, **_output(tuning)}}]}
    lora = tuned.arguments["lora"]
    rank = max(lora["r"], *lora.get("rank_pattern", {}).values(), 1)
    # On the nodes that are there, and on no more of them than the model needs.
    settings = settings.model_copy(update={"max_nodes": tuned.nodes})
    alone = workspace.model_copy(update={"resource": workspace.resource.model_copy(update={"count": 1})})
    plan = plan_serve(
        alone,
        Inference.model_validate(document, strict=False),
        preset,
        sku,
        settings,
        config=InferenceConfig({"max-lora-rank": next(one for one in _RANKS if one >= rank)}),
        sizes=sizes,
        context=None,
    )
    [adapter] = plan.adapters
    if digest and "image" in adapter.source:
        adapter = replace(adapter, source={**adapter.source, "digest": digest})
    return replace(plan, adapters=(adapter,), default_adapter=name)


def _preset(tuning: Tuning) -> Mapping[str, Any]:
    return tuning.preset.model_dump(mode="json", by_alias=True)


def _output(tuning: Tuning) -> dict[str, Any]:
    output = tuning.output
    if output.volume_source is not None:
        return {"volumeSource": output.volume_source}
    secrets = [output.image_push_secret] if output.image_push_secret else []
    return {"image": output.image, "imagePullSecrets": [one for one in secrets if not placeholders(one)]}
