# SPDX-License-Identifier: Apache-2.0
"""A manifest file in; its one Workspace, planned for this machine, with the Secrets that stand beside it, out.

Used by local.py at the start and each time the file is saved.
"""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, cast

from kaito_ray import names
from kaito_ray.artifacts.docker_config import machine_config
from kaito_ray.errors import CannotRun
from kaito_ray.hub import find_preset
from kaito_ray.local_model import fetch_image, local_model_folder
from kaito_ray.manifest import Manifest, read_manifest
from kaito_ray.plan import ServePlan, TunePlan, plan
from kaito_ray.plan_served import plan_served_after_tuning
from kaito_ray.preset import Preset, load_catalogue
from kaito_ray.references import DOCKER_CONFIG_KEY
from kaito_ray.settings import Settings
from kaito_ray.sku import local_size
from kaito_ray.stages import Stages
from kaito_ray.workspace import Workspace

HUB_TOKEN_KEY = "HF_TOKEN"  # noqa: S105 the name of a key, as KAITO has it


@dataclass(frozen=True, slots=True)
class LocalWorkspace:
    """A Workspace ready to run here."""

    plan: ServePlan
    """What is served; of a Workspace that tunes, what is served once it has."""
    api_keys: Mapping[str, str] = field(repr=False)
    """The keys that requests must carry one of, by their name in the Secret; empty serves without keys."""
    hub_token: str | None = field(repr=False)
    logins: Mapping[str, str] = field(repr=False, default_factory=dict)
    """The Docker configurations of the file's Secrets, by the name of the Secret."""
    tuning: TunePlan | None = None

    def pinned(self, digest: str) -> Self:
        """The same, with the tuned adapter's image at that digest; a folder has no need of it."""
        adapters = tuple(
            replace(one, source={**one.source, "digest": digest})
            if one.name == self.plan.default_adapter and "image" in one.source
            else one
            for one in self.plan.adapters
        )
        return replace(self, plan=replace(self.plan, adapters=adapters)) if digest else self

    def hub_env(self) -> dict[str, str]:
        """What the processes that load the model need to reach a gated one."""
        return {HUB_TOKEN_KEY: self.hub_token} if self.hub_token else {}

    @property
    def any_key(self) -> str | None:
        """A key to ask with; None without keys."""
        return next(iter(self.api_keys.values()), None)

    def write_api_keys(self, folder: Path) -> str | None:
        """Lay the keys out as the mounted Secret of a pod, one file per key; None when there are none."""
        if not self.api_keys:
            return None
        keys = folder / "api-keys"
        keys.mkdir(mode=0o700, exist_ok=True)
        for old in keys.iterdir():
            if old.name not in self.api_keys:
                old.unlink()
        for name, value in self.api_keys.items():
            (keys / name).write_text(value)
        return str(keys)

    def write_logins(self, folder: Path) -> str:
        """Lay the Docker configurations out as pods have them, one file per Secret.

        What `docker login` left on this machine stands in for Secrets that the file has not.
        """
        logins = folder / "registry"
        logins.mkdir(mode=0o700, exist_ok=True)
        tuning = self.tuning
        sources = [adapter.source for adapter in self.plan.adapters]
        sources += [tuning.input, tuning.output] if tuning is not None else []
        ours = machine_config((str(one["image"]) for one in sources if one.get("image")), os.environ)
        missing = {str(name) for one in sources for name in one.get("imagePullSecrets") or ()} - self.logins.keys()
        found = {**self.logins, **(dict.fromkeys(("_machine", *missing), ours) if ours else {})}
        for name, config in found.items():
            (logins / f"{name}.json").write_text(config)
        return str(logins)

    @property
    def model_folder(self) -> str | None:
        """Where the engine finds a model that comes as an image; it has any other from where the plan says."""
        return local_model_folder(self.plan.source)

    def fetch_model(self, stages: Stages, note: Callable[[str], None], allowed: Collection[str]) -> str:
        """Have the weights on this machine; what was done, in words."""
        source = self.plan.source
        if source.kind == "builtin":
            from kaito_ray.tiny_model import model_path

            note("training it on its few dozen sentences, once per machine")
            return f"{source.reference} in {model_path()}"
        if source.kind == "hub":
            from kaito_ray.local_download import download

            return download(source.reference, source.revision, token=self.hub_token)
        if source.kind == "image":
            return fetch_image(source, self.logins, stages, note, allowed)
        if source.volume is not None and source.volume.kind == "claim":
            raise CannotRun(
                f"annotation {names.ANNOTATION_MODEL_CLAIM} names a claim, which a cluster has and this machine has not"
            )
        return source.reference


def load_workspace(file: Path, settings: Settings) -> LocalWorkspace:
    """Read, validate and plan the one Workspace of `file`; raises KaitoRayError for whatever is wrong with it."""
    manifest = read_manifest(file, allow_private_urls=settings.allow_private_urls)
    if len(manifest.workspaces) != 1:
        found = ", ".join(each.metadata.name for each in manifest.workspaces) or "none"
        raise CannotRun(f"{file} must hold exactly one Workspace to run, it has {found}")
    workspace = manifest.workspaces[0]
    work = workspace.inference or workspace.tuning
    if work is None or work.preset is None:
        raise CannotRun("inference.template describes a pod, which only a cluster can run; name a preset instead")
    secret = work.preset.preset_options.model_access_secret
    hub_token = manifest.secret(secret).get(HUB_TOKEN_KEY) if secret else None
    preset = find_preset(work.preset.name, load_catalogue(settings.presets_dir), token=hub_token)
    data = manifest.config_map(work.config) if work.config else None
    tuned, served = _plans(workspace, preset, settings, data)
    return LocalWorkspace(
        plan=served,
        api_keys=_api_keys(served, manifest, file),
        hub_token=hub_token,
        logins={
            name: one[DOCKER_CONFIG_KEY] for (_, name), one in manifest.secrets.items() if DOCKER_CONFIG_KEY in one
        },
        tuning=tuned,
    )


def _plans(
    workspace: Workspace, preset: Preset, settings: Settings, config: Mapping[str, str] | None
) -> tuple[TunePlan | None, ServePlan]:
    """What is tuned, if anything, and what is served then."""
    size = local_size()
    here = settings.model_copy(update={"max_nodes": 1})
    if workspace.tuning is None:
        # With inference in the Workspace the plan is one to serve.
        return None, cast(ServePlan, plan(workspace, preset, size, here, config=config))
    # Without a GPU, nodes become as many workers on this machine.
    tuned = cast(TunePlan, plan(workspace, preset, size, here if size.gpus else settings, config=config))
    return tuned, plan_served_after_tuning(workspace, tuned, preset, size, here)


def _api_keys(served: ServePlan, manifest: Manifest, file: Path) -> Mapping[str, str]:
    api_keys = manifest.secret(served.api_keys_secret) if served.api_keys_secret else {}
    if served.api_keys_secret and not api_keys:
        raise CannotRun(
            f"metadata.annotations names the Secret {served.api_keys_secret} for API keys; put it into {file} as well, "
            "with at least one key"
        )
    return api_keys
