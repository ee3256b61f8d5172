# SPDX-License-Identifier: Apache-2.0
"""A repository of the model hub becomes a folder, pinned to the commit its revision meant when it was asked.

Called by source.py. huggingface_hub does the transfer, resumes and verifies; here its errors become reasons and its
sizes meet the limits before the first byte.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.limits import Limits, human_bytes
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable

Choose = Callable[[Iterable[str]], Iterable[str]]
"""Takes of the names of all files those that are wanted."""


@dataclass(frozen=True, slots=True)
class HubFiles:
    """What to fetch: `commit` is what the revision means now, `names` and `size` what passes the filter."""

    repository: str
    commit: str
    names: tuple[str, ...]
    size: int
    token: str | None = field(repr=False)
    endpoint: str | None


async def find_files(
    repository: str,
    revision: str | None,
    choose: Choose,
    limits: Limits,
    *,
    token: str | None = None,
    endpoint: str | None = None,
) -> HubFiles:
    """Ask the hub for the commit and the sizes of the files that `choose` takes of the repository's."""
    return await asyncio.to_thread(_find_files, repository, revision, choose, limits, token, endpoint)


async def fetch_files(files: HubFiles, work: Path, cache: Cache) -> Path:
    """Download into a folder below `work` and return it."""
    await cache.make_room(files.size)
    return await asyncio.to_thread(_fetch_files, files, work)


def _find_files(
    repository: str,
    revision: str | None,
    choose: Choose,
    limits: Limits,
    token: str | None,
    endpoint: str | None,
) -> HubFiles:
    from huggingface_hub import HfApi

    with _translated(repository, revision):
        info = HfApi(endpoint=endpoint, token=token).model_info(
            repository, revision=revision, files_metadata=True, timeout=limits.idle_s
        )
    chosen = set(choose([file.rfilename for file in info.siblings or []]))
    found = [file for file in info.siblings or [] if file.rfilename in chosen]
    size = sum(file.size or 0 for file in found)
    if size > limits.bytes:
        raise ArtifactRefused(
            f"{repository}: has {human_bytes(size)}, at most {human_bytes(limits.bytes)} are allowed",
            reason=Reason.TOO_LARGE,
        )
    return HubFiles(repository, str(info.sha), tuple(sorted(file.rfilename for file in found)), size, token, endpoint)


def _fetch_files(files: HubFiles, work: Path) -> Path:
    from huggingface_hub import snapshot_download

    tree = work / "tree"
    with _translated(files.repository, files.commit):
        snapshot_download(
            files.repository,
            revision=files.commit,
            local_dir=tree,
            allow_patterns=list(files.names),
            token=files.token,
            endpoint=files.endpoint,
        )
    shutil.rmtree(tree / ".cache", ignore_errors=True)  # the library's own notes on the transfer
    return tree


@contextlib.contextmanager
def _translated(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into ours; its messages may name a token, so none of them passes."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever release of it the hub's library builds on

    try:
        yield
    except errors.GatedRepoError:
        raise ArtifactRefused(
            f"{repository} is gated: its licence must be accepted on the hub with the account of the token",
            reason=Reason.GATED,
        ) from None
    except errors.RevisionNotFoundError:
        raise ArtifactRefused(
            f"{repository} has no revision {revision} on the hub", reason=Reason.REVISION_NOT_FOUND
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ArtifactRefused(
            f"the hub knows no repository {repository}, or shows it only to another token", reason=Reason.NOT_FOUND
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in {401, 403}:
            reason = Reason.UNAUTHORIZED if status == 401 else Reason.FORBIDDEN
            raise ArtifactRefused(f"the hub refuses {repository} to this token ({status})", reason=reason) from None
        reason = Reason.RATE_LIMITED if status == 429 else Reason.SERVER_ERROR
        raise ArtifactUnavailable(f"the hub answers {status or 'nothing'} for {repository}", reason=reason) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError):
        raise ArtifactUnavailable(f"{repository}: the hub cannot be reached", reason=Reason.CONNECTION_FAILED) from None
