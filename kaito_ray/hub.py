# SPDX-License-Identifier: Apache-2.0
"""Any `org/model` of the Hugging Face hub as a preset: asked once, then remembered at the revision it had.

Called where a preset is looked up (find_preset). What the hub's answers mean is in hub_facts.py. A refusal for good is
HubRefused; a hub that cannot answer now is NotReadyYet.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from kaito_ray.errors import CannotRun, HubRefused, NotReadyYet, UnknownPreset
from kaito_ray.hub_facts import preset_of_files
from kaito_ray.preset import Catalogue, Preset

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_TIMEOUT_S = 15.0
_RETRY_S = 60.0
TOKEN_KEY = "HF_TOKEN"  # noqa: S105 - the name of a variable and of a Secret's key, as in KAITO


def find_preset(name: str, catalogue: Catalogue, *, token: str | None = None) -> Preset:
    """The preset of the catalogue, or else the model of that id on the hub; raises as both do."""
    try:
        return catalogue.get(name)
    except UnknownPreset:
        if not is_hub_id(name):
            raise
    return Hub(catalogue).preset(name, token=token)


def is_hub_id(name: str) -> bool:
    """Whether a name could be an `org/model` of the hub."""
    return _ID.fullmatch(name) is not None


def cache_folder() -> Path:
    """Where facts from the hub are remembered: `$XDG_CACHE_HOME/kaito-ray/hub`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kaito-ray" / "hub"


class Hub:
    """The hub at `endpoint` (`HF_ENDPOINT` or the public one), with its answers kept in `folder`."""

    def __init__(self, catalogue: Catalogue, *, endpoint: str | None = None, folder: Path | None = None) -> None:
        self._catalogue = catalogue
        self._endpoint = endpoint or os.environ.get("HF_ENDPOINT")
        self._folder = folder or cache_folder()

    def preset(self, name: str, *, token: str | None = None) -> Preset:
        """The facts about `org/model`; asks the hub the first time only, so that the revision stays what it was.

        Raises HubRefused, NotReadyYet, or CannotRun when huggingface_hub is not installed. `token` opens gated models;
        without one `HF_TOKEN` is used.
        """
        file = self._folder / f"{name.lower().replace('/', '--')}.json"
        remembered = _read(file)
        if remembered is not None:
            return remembered
        preset = self._ask(name, token)
        _write(file, preset)
        return preset

    def _ask(self, name: str, token: str | None) -> Preset:
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise CannotRun(
                f"{name} is not in the catalogue, and to ask the hub about it huggingface_hub must be installed"
            ) from None
        api = HfApi(endpoint=self._endpoint, token=token or os.environ.get(TOKEN_KEY) or False)
        try:
            info = api.model_info(name, files_metadata=True, timeout=_TIMEOUT_S)
            files = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
            config = _config(api, name, str(info.sha), files)
        except Exception as error:
            _refuse(name, error)
        try:
            return preset_of_files(
                name,
                config=config,
                files=files,
                revision=str(info.sha),
                gated=bool(info.gated),
                license_name=_license(info),
                catalogue=self._catalogue,
            )
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise HubRefused(f"config.json of {name} makes no sense: {problems}", reason="IncompleteModel") from None


def _config(api: "HfApi", name: str, revision: str, files: dict[str, int]) -> dict[str, Any]:
    """config.json at that revision."""
    if "config.json" not in files:
        raise HubRefused(f"{name} has no config.json, so it is no model that vLLM can serve", reason="IncompleteModel")
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(name, "config.json", revision=revision, local_dir=folder)
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:
            config = None
    if not isinstance(config, dict):
        raise HubRefused(f"config.json of {name} is not a JSON object", reason="IncompleteModel")
    return config


def _license(info: "ModelInfo") -> str:
    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return tags[0] if tags else ""


def _refuse(name: str, error: Exception) -> NoReturn:
    """Say what an error of the hub means for somebody who wants that model."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # The hub's client is built on a fork of httpx whose name changes between its versions; this is its base of errors.
    transport = HfHubHTTPError.__bases__[0]
    if isinstance(error, GatedRepoError):
        raise HubRefused(
            f"{name} is gated: accept its terms on its page of the hub, and give a token that may read it in "
            f"presetOptions.modelAccessSecret (key {TOKEN_KEY}) or in {TOKEN_KEY}",
            reason="ModelGated",
        ) from None
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        raise HubRefused(
            f"the hub has no model {name}, or shows it only with a token in presetOptions.modelAccessSecret "
            f"(key {TOKEN_KEY}) or in {TOKEN_KEY}",
            reason="ModelNotFound",
        ) from None
    if isinstance(error, HfHubHTTPError):
        _refuse_status(name, error.response.status_code, error.response.headers.get("retry-after", ""))
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError | transport | OSError):
        raise NotReadyYet(
            f"{name} is not in the catalogue, and the hub cannot be reached to ask about it",
            reason="HubUnreachable",
            delay_s=_RETRY_S,
        ) from None
    raise error


def _refuse_status(name: str, status: int, retry_after: str) -> NoReturn:
    if status == 429:
        delay_s = float(retry_after) if retry_after.isdigit() else _RETRY_S
        message = f"the hub answers no more questions about {name} for now (429); a token raises its limit"
        raise NotReadyYet(message, reason="HubRateLimited", delay_s=delay_s) from None
    if status in (401, 403):
        raise HubRefused(f"the hub does not accept the token for {name} ({status})", reason="TokenRefused") from None
    if status >= 500:
        message = f"the hub has trouble of its own and cannot answer about {name} ({status})"
        raise NotReadyYet(message, reason="HubUnavailable", delay_s=_RETRY_S) from None
    raise HubRefused(f"the hub refuses to answer about {name} ({status})", reason="ModelUnavailable") from None


def _read(file: Path) -> Preset | None:
    """What was remembered; nothing when it is not there or was written by another version."""
    try:
        return Preset.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _write(file: Path, preset: Preset) -> None:
    """Remember, whole or not at all; a folder that cannot be written to costs another question, nothing else."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as part:
            part.write(preset.model_dump_json(by_alias=True, exclude_defaults=True))
        Path(part.name).replace(file)
    except OSError:
        return
