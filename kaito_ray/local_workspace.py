# SPDX-License-Identifier: Apache-2.0
"""A manifest file in; its one Workspace, planned for this machine, with the Secrets that stand beside it, out.

Used by local.py at the start and each time the file is saved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kaito_ray.errors import CannotRun
from kaito_ray.hub import find_preset
from kaito_ray.manifest import read_manifest
from kaito_ray.plan import ServePlan, plan
from kaito_ray.preset import load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sku import local_size

HUB_TOKEN_KEY = "HF_TOKEN"  # noqa: S105 the name of a key, as KAITO has it


@dataclass(frozen=True, slots=True)
class LocalWorkspace:
    """A Workspace ready to run here."""

    plan: ServePlan
    api_keys: Mapping[str, str]
    """The keys that requests must carry one of, by their name in the Secret; empty serves without keys."""
    hub_token: str | None

    def hub_env(self) -> dict[str, str]:
        """What the processes that load the model need to reach a gated one."""
        return {HUB_TOKEN_KEY: self.hub_token} if self.hub_token else {}

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

    def fetch_model(self, note: Callable[[str], None]) -> str:
        """Have the weights on this machine; what was done, in words."""
        source = self.plan.source
        if source.kind == "builtin":
            from kaito_ray.tiny_model import model_path

            note("training it on its few dozen sentences, once per machine")
            return f"{source.reference} in {model_path()}"
        if source.kind == "hub":
            from kaito_ray.local_download import download

            return download(source.reference, source.revision, token=self.hub_token)
        return source.reference


def load_workspace(file: Path, settings: Settings) -> LocalWorkspace:
    """Read, validate and plan the one Workspace of `file`; raises KaitoRayError for whatever is wrong with it."""
    manifest = read_manifest(file, allow_private_urls=settings.allow_private_urls)
    if len(manifest.workspaces) != 1:
        found = ", ".join(each.metadata.name for each in manifest.workspaces) or "none"
        raise CannotRun(f"{file} must hold exactly one Workspace to run, it has {found}")
    workspace = manifest.workspaces[0]
    if workspace.inference is None:
        raise CannotRun(f"Workspace {workspace.metadata.name} has tuning, and `kaito-ray run` serves inference")
    if workspace.inference.preset is None:
        raise CannotRun("inference.template describes a pod, which only a cluster can run; name a preset instead")
    secret = workspace.inference.preset.preset_options.model_access_secret
    hub_token = manifest.secret(secret).get(HUB_TOKEN_KEY) if secret else None
    preset = find_preset(workspace.inference.preset.name, load_catalogue(settings.presets_dir), token=hub_token)
    config = workspace.inference.config
    data = manifest.config_map(config) if config else None
    here = settings.model_copy(update={"max_nodes": 1})
    # With inference in the Workspace the plan is one to serve.
    made = cast(ServePlan, plan(workspace, preset, local_size(), here, config=data))
    api_keys = manifest.secret(made.api_keys_secret) if made.api_keys_secret else {}
    if made.api_keys_secret and not api_keys:
        raise CannotRun(
            f"metadata.annotations names the Secret {made.api_keys_secret} for API keys; put it into {file} as well, "
            "with at least one key"
        )
    return LocalWorkspace(
        plan=made,
        api_keys=api_keys,
        hub_token=hub_token,
    )
