# SPDX-License-Identifier: Apache-2.0
"""A model of the hub into this machine's hub cache, with the hub library's own progress bars.

Called by local_workspace.py before the engine starts, which then finds every file in the cache.
"""

from kaito_ray.errors import CannotRun, HubRefused

# Weights as pickles are never fetched.
_WEIGHTS, _WANTED = "*.safetensors", ("*.json", "*.jinja", "*.txt", "*.model", "*.py")


def download(model: str, revision: str | None, *, token: str | None, weights: bool = True) -> str:
    """The folder with the files of `model`, fetched or already there; without `weights` only what comes beside them.

    Raises HubRefused when the hub says no (missing, gated), CannotRun when it cannot be reached.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        wanted = [*_WANTED, *([_WEIGHTS] if weights else [])]
        return snapshot_download(model, revision=revision, token=token, allow_patterns=wanted)
    except GatedRepoError:
        raise HubRefused(
            f"{model} is gated: accept its licence on the hub and give a token as HF_TOKEN, in the environment or in "
            "the Secret that presetOptions.modelAccessSecret names",
            reason="ModelGated",
        ) from None
    except RevisionNotFoundError:
        raise HubRefused(f"{model} has no revision {revision} on the hub", reason="RevisionNotFound") from None
    except RepositoryNotFoundError:
        raise HubRefused(
            f"the hub knows no model {model}, or shows it only to another token", reason="ModelNotFound"
        ) from None
    except (LocalEntryNotFoundError, httpx.TransportError):
        raise CannotRun(
            f"{model} is not on this machine and the hub cannot be reached; the preset tiny-phi-3 needs no download"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise CannotRun(f"the model hub answered {status} for {model}; try again later") from None
