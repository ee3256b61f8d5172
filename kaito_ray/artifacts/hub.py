# SPDX-License-Identifier: Apache-2.0
"""A repository of the model hub becomes a folder, pinned to the commit its revision meant when it was asked.

Called by source.py. huggingface_hub says what there is; the files come on the same way as everything else
(download.py), because the library checks no hash of what it downloads, and its bars cannot be asked how far they are.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from kaito_ray.artifacts.cache import Cache, tree_size
from kaito_ray.artifacts.download import Ask, download
from kaito_ray.artifacts.layer import safe_name
from kaito_ray.artifacts.limits import Limits, human_bytes
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.transport import Transport, persist, retry_after, status_error
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable

Choose = Callable[[Iterable[str]], Iterable[str]]
"""Takes of the names of all files those that are wanted."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository, with the hash that the hub knows it by: of large files sha256, of others git's."""

    name: str
    size: int
    sha256: str
    git_sha1: str

    def is_what_came(self, sha256: str, path: Path) -> bool:
        """Whether a file with that hash is the one; true when the hub gave no hash."""
        if self.sha256:
            return sha256 == self.sha256
        if not self.git_sha1.strip("0"):
            return True
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.git_sha1  # noqa: S324 git's own


@dataclass(frozen=True, slots=True)
class HubFiles:
    """What to fetch: `commit` is what the revision means now, `files` what was chosen of its files."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]
    skipped: tuple[str, ...]
    token: str | None = field(repr=False)
    endpoint: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files."""
        return tuple(file.name for file in self.files)

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)


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

    async def attempt() -> HubFiles:
        return await asyncio.to_thread(_find_files, repository, revision, choose, limits, token, endpoint)

    return await persist(attempt, limits, what=repository)


async def fetch_files(
    files: HubFiles,
    work: Path,
    cache: Cache,
    limits: Limits,
    *,
    allowed: Collection[str] = (),
    resolver: AbstractResolver | None = None,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, str]]:
    """Download into a folder below `work`; that folder, and the sha256 of its files.

    What an earlier try left in `work` is continued. Every file is compared with the hash that the hub has for it.
    Raises ArtifactRefused or ArtifactUnavailable.
    """
    progress = progress or Progress()
    progress.expect(files.size)
    blobs, tree = work / "blobs", work / "tree"
    for folder in (blobs, tree):
        folder.mkdir(exist_ok=True)
    await cache.make_room(files.size, await asyncio.to_thread(tree_size, blobs))
    turn = asyncio.Semaphore(limits.parallel)
    # The hub itself may be a mirror inside the network: an administrator said so with HF_ENDPOINT.
    host = URL(files.endpoint).host or ""
    async with Transport(limits, (*allowed, host), resolver=resolver) as transport:

        async def fetch(file: HubFile) -> str:
            async with turn:
                return await _fetch(transport, files, file, blobs, tree, limits, progress)

        tasks = [asyncio.create_task(fetch(file)) for file in files.files]
        try:
            hashes = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return tree, dict(zip(files.names, hashes, strict=True))


async def _fetch(
    transport: Transport,
    files: HubFiles,
    file: HubFile,
    blobs: Path,
    tree: Path,
    limits: Limits,
    progress: Progress,
) -> str:
    name = safe_name(file.name)
    what = f"{files.repository}: {name}"
    blob = blobs / hashlib.sha256(name.encode()).hexdigest()
    got = await download(
        _ask(transport, files, name, what),
        blob,
        replace(limits, bytes=file.size),
        what=what,
        size=file.size,
        immutable=True,
        progress=progress,
    )
    if not await asyncio.to_thread(file.is_what_came, got.sha256, blob):
        await asyncio.to_thread(blob.unlink)
        raise ArtifactRefused(
            f"{what}: its {got.size} bytes are not those that the hub has a hash of", reason=Reason.DIGEST_MISMATCH
        )
    target = tree / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.hardlink_to(blob)
    return got.sha256


def _ask(transport: Transport, files: HubFiles, name: str, what: str) -> Ask:
    """How to ask for a file; every try begins at the hub, whose links to a store expire."""
    url = str(URL(files.endpoint) / files.repository / "resolve" / files.commit / name)

    @contextlib.asynccontextmanager
    async def ask(headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        login = {"Authorization": f"Bearer {files.token}"} if files.token else {}
        async with transport.request("GET", url, headers=login | dict(headers)) as response:
            if response.status in {401, 403, 404}:
                raise _refusal(response, files, what)
            yield response

    return ask


def _find_files(
    repository: str,
    revision: str | None,
    choose: Choose,
    limits: Limits,
    token: str | None,
    endpoint: str | None,
) -> HubFiles:
    from huggingface_hub import HfApi, get_token

    api = HfApi(endpoint=endpoint, token=token)
    with _translated(repository, revision):
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=limits.idle_s)
    siblings = {file.rfilename: file for file in info.siblings or []}
    chosen = sorted(choose(siblings))
    files = tuple(
        HubFile(name, one.size or 0, one.lfs.sha256 if one.lfs else "", "" if one.lfs else one.blob_id or "")
        for name, one in ((name, siblings[name]) for name in chosen)
    )
    found = HubFiles(
        repository,
        str(info.sha),
        files,
        tuple(sorted(siblings.keys() - set(chosen))),
        token or get_token(),
        str(api.endpoint),
    )
    if found.size > limits.bytes:
        raise ArtifactRefused(
            f"{repository}: has {human_bytes(found.size)}, at most {human_bytes(limits.bytes)} are allowed",
            reason=Reason.TOO_LARGE,
        )
    return found


def _refusal(response: aiohttp.ClientResponse, files: HubFiles, what: str) -> ArtifactRefused | ArtifactUnavailable:
    """The error of a file that the hub does not give; a code of its own says more than the status."""
    match response.headers.get("X-Error-Code", ""):
        case "GatedRepo":
            return _gated(files.repository)
        case "RepoNotFound":
            return _unknown(files.repository)
        case "RevisionNotFound":
            return _no_revision(files.repository, files.commit)
    return status_error(response, what)


def _unknown(repository: str) -> ArtifactRefused:
    return ArtifactRefused(
        f"the hub knows no repository {repository}, or shows it only to another token", reason=Reason.NOT_FOUND
    )


def _no_revision(repository: str, revision: str | None) -> ArtifactRefused:
    return ArtifactRefused(f"{repository} has no revision {revision} on the hub", reason=Reason.REVISION_NOT_FOUND)


def _gated(repository: str) -> ArtifactRefused:
    return ArtifactRefused(
        f"{repository} is gated: its licence must be accepted on the hub with the account of the token",
        reason=Reason.GATED,
    )


@contextlib.contextmanager
def _translated(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into ours; its messages may name a token, so none of them passes."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever release of it the hub's library builds on

    try:
        yield
    except errors.GatedRepoError:
        raise _gated(repository) from None
    except errors.RevisionNotFoundError:
        raise _no_revision(repository, revision) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise _unknown(repository) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in {401, 403}:
            reason = Reason.UNAUTHORIZED if status == 401 else Reason.FORBIDDEN
            raise ArtifactRefused(f"the hub refuses {repository} to this token ({status})", reason=reason) from None
        reason = Reason.RATE_LIMITED if status == 429 else Reason.SERVER_ERROR
        wait = error.response.headers.get("Retry-After") if error.response is not None else None
        raise ArtifactUnavailable(
            f"the hub answers {status or 'nothing'} for {repository}", reason=reason, retry_after_s=retry_after(wait)
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError):
        raise ArtifactUnavailable(f"{repository}: the hub cannot be reached", reason=Reason.CONNECTION_FAILED) from None
