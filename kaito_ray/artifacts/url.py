# SPDX-License-Identifier: Apache-2.0
"""Files of the web into the node's cache, by content: fetched once, asked again only whether they changed.

Called by source.py. The rules for addresses are transport.py's; here a URL becomes a file with a usable name.
"""

import asyncio
import contextlib
import hashlib
import shutil
import warnings
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

from aiohttp.multipart import content_disposition_filename, parse_content_disposition

from kaito_ray.artifacts.cache import Cache, Entry
from kaito_ray.artifacts.download import download
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.transport import Transport, shown
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable


@dataclass(slots=True)
class Fetched:
    """One file: its place in the cache, the name its source gives it, and the hash of its content."""

    entry: Entry
    name: str
    sha256: str


async def fetch_url(transport: Transport, url: str, cache: Cache, *, progress: Progress | None = None) -> Fetched:
    """Fetch `url`, or take it from the cache when its server says that nothing changed.

    A server that cannot be reached does not matter for a file that is already here.
    """
    key = f"url-{hashlib.sha256(url.encode()).hexdigest()}"
    async with cache.locked(key) as work:
        note = cache.note(key)
        known = await cache.find(f"file-{note['sha256']}") if "sha256" in note else None
        headers = {}
        if known:
            headers = {"If-None-Match": note["etag"]} if note.get("etag") else {}
            if not headers and note.get("modified"):
                headers = {"If-Modified-Since": note["modified"]}
        try:
            got = await download(
                lambda more: transport.request("GET", url, headers=headers | dict(more)),
                work / "body",
                transport.limits,
                what=shown(url),
                progress=progress,
                reserve=cache.make_room,
            )
        except ArtifactUnavailable:
            if known is None:
                raise
            return Fetched(known, note["name"], note["sha256"])
        except ArtifactRefused:
            if known:
                known.release()
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
            raise
        if got.status == 304 and known:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
            return Fetched(known, note["name"], note["sha256"])
        if known:
            known.release()
        name = file_name(url, got.headers.get("Content-Disposition"))
        entry = await cache.publish(f"file-{got.sha256}", work / "body", work)
        cache.write_note(
            key,
            {
                "name": name,
                "sha256": got.sha256,
                "etag": got.headers.get("ETag", ""),
                "modified": got.headers.get("Last-Modified", ""),
            },
        )
        return Fetched(entry, name, got.sha256)


def file_name(url: str, disposition: str | None) -> str:
    """The name of a download: what the server calls it, the end of the path, or a value of the query with a suffix.

    `https://host/data/train.parquet?download=true` is train.parquet, `https://host/get?file=train.jsonl` is
    train.jsonl.
    """
    candidates = []
    if disposition:
        with warnings.catch_warnings(), contextlib.suppress(ValueError):
            warnings.simplefilter("ignore")  # a header that is not quite right still may have the name
            _, parameters = parse_content_disposition(disposition)
            candidates.append(content_disposition_filename(parameters) or "")
    parts = urlsplit(url)
    path = unquote(parts.path).rstrip("/")
    candidates.append(path if PurePosixPath(path).suffix else "")
    candidates += [value for _, value in parse_qsl(parts.query) if PurePosixPath(value).suffix]
    candidates.append(path)
    return next((name for name in map(plain_name, candidates) if name), "download")


def plain_name(name: str) -> str:
    """The last part of a path, without control characters, leading dots and excess; may be empty."""
    last = name.replace("\\", "/").rpartition("/")[2]
    last = "".join(character for character in last if character.isprintable()).strip().lstrip(".")
    encoded = last.encode()
    return last if len(encoded) <= 200 else encoded[-200:].decode(errors="ignore")
