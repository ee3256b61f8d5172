# SPDX-License-Identifier: Apache-2.0
"""Brings a model into the cache of a node before Ray starts there: `python -m kaito_ray.model_fetch '<JSON>'`.

The JSON is what render/model.py writes, a Wish. Pods run this in a container of its own, the only one with the logins
of the registry and the token of the hub; the engine then reads a folder. `kaito-ray run` calls `fetch_into` itself.
While it works, Prometheus finds KAITO's gauges on the port that is Ray's afterwards. What came of it stands in the
container's termination message, from where the operator takes it: `<Reason>: <sentence>` when it failed.
"""

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.credential import Login
from kaito_ray.artifacts.limits import GIB, human_bytes
from kaito_ray.artifacts.model import FetchedModel, fetch_model, model_stager
from kaito_ray.artifacts.model_files import choose_files, choose_for_transformers
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.source import Source
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable
from kaito_ray.names import MODEL_AUTH_DIR, MODELS_DIR, PORT_METRICS
from kaito_ray.progress_text import progress_line
from kaito_ray.settings import Settings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_LINE_EVERY_S = 10.0
HUB_TOKEN = "HF_TOKEN"  # noqa: S105 the name of a variable
# As sysexits has it: worth another try.
_EXIT_REFUSED, _EXIT_UNAVAILABLE = 1, 75


class Wish(BaseModel):
    """What is to be fetched and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source
    link: str
    """Below `root`: the name under which the model is found whatever its digest."""
    names: tuple[str, ...] = ()
    architecture: str = ""
    form: Literal["engine", "transformers"] = "engine"
    """Who reads it; some repositories have the weights twice."""
    root: Path = Path(MODELS_DIR)
    limit_gib: int | None = None
    spare_share: float = 0.0
    """Of the disk, to be left free."""
    auth_dir: Path = Path(MODEL_AUTH_DIR)
    metrics_port: int = PORT_METRICS
    termination_log: Path = Path("/dev/termination-log")


class DownloadGauges:
    """A collector for prometheus_client: KAITO's two gauges, and the bytes they come from."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> "Iterator[Metric]":
        """The values of this moment; -1 seconds while nobody can say, as in KAITO."""
        from prometheus_client.metrics_core import GaugeMetricFamily

        progress = self._progress
        remaining = progress.remaining_s
        for name, text, value in (
            ("speed_bytes_per_second", "Speed of the model's download.", progress.bytes_per_second),
            ("remaining_seconds", "Seconds left; -1 is unknown.", -1.0 if remaining is None else remaining),
            ("bytes", "Bytes of the model that are here.", progress.done),
            ("total_bytes", "Bytes of the model; 0 is unknown.", progress.total),
        ):
            yield GaugeMetricFamily(f"kaito_model_download_{name}", text, value=value)


async def fetch_into(
    wish: Wish,
    progress: Progress,
    *,
    allowed: Collection[str] = (),
    token: str | None = None,
    more_logins: Callable[[Reference], Sequence[Login]] | None = None,
) -> FetchedModel:
    """Have the model under `wish.link`; raises ArtifactRefused and ArtifactUnavailable.

    `allowed` are private addresses that may be asked, `token` is the hub's.
    """
    stager = model_stager(
        Cache(wish.root, wish.limit_gib * GIB if wish.limit_gib is not None else None, spare_share=wish.spare_share),
        allowed=allowed,
        auth_dir=wish.auth_dir,
        more_logins=more_logins,
        hub_token=token,
        progress=progress,
        choose=choose_for_transformers if wish.form == "transformers" else choose_files,
    )
    model = await fetch_model(stager, wish.source, names=wish.names, architecture=wish.architecture)
    await asyncio.to_thread(_point, wish.root / wish.link, model.path)
    return model


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, in one step; relative, since every pod may mount the cache elsewhere."""
    link.parent.mkdir(exist_ok=True)
    fresh = link.with_name(f".{uuid.uuid4().hex}")
    fresh.symlink_to(os.path.relpath(target, link.parent))
    fresh.rename(link)


@contextlib.contextmanager
def _metrics(progress: Progress, port: int) -> Iterator[None]:
    """Serve the gauges for as long as the block runs."""
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(DownloadGauges(progress))
    server, thread = start_http_server(port, registry=registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()  # Ray's exporter wants the port
        thread.join()


async def _run(wish: Wish, progress: Progress) -> FetchedModel:
    async def report() -> None:
        while True:
            print(progress_line(progress), flush=True)
            await asyncio.sleep(_LINE_EVERY_S)

    reporting = asyncio.create_task(report())
    try:
        allowed = Settings.from_env(os.environ).allow_private_urls
        return await fetch_into(wish, progress, allowed=allowed, token=os.environ.get(HUB_TOKEN))
    finally:
        reporting.cancel()


def main(text: str) -> int:
    """Do what the JSON says; the exit code."""
    wish, progress, began = Wish.model_validate_json(text), Progress(), time.monotonic()
    try:
        with _metrics(progress, wish.metrics_port):
            model = asyncio.run(_run(wish, progress))
    except (ArtifactRefused, ArtifactUnavailable) as error:
        message = f"{error.reason}: {error}"
        code = _EXIT_REFUSED if isinstance(error, ArtifactRefused) else _EXIT_UNAVAILABLE
    else:
        came = progress.done - progress.resumed
        took = f"{human_bytes(came)} in {time.monotonic() - began:.0f} s" if came else "was on this node already"
        message, code = ", ".join(filter(None, (took, model.digest, model.revision))), 0
    print(message, file=sys.stderr if code else sys.stdout)
    with contextlib.suppress(OSError):
        wish.termination_log.write_text(message)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
