# SPDX-License-Identifier: Apache-2.0
"""Manifests in, a verdict on the training data of each Workspace that tunes out: `kaito-ray validate --data`.

The data is fetched to this machine and judged as the job would judge it, before anybody pays for a GPU. `hostPath` is a
folder of this machine; other volumes are a cluster's and stay unread.
"""

import asyncio
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.dataset import Report, read_dataset
from kaito_ray.artifacts.dataset_format import Wish
from kaito_ray.artifacts.dataset_tokens import Counter, RoughCounter, TokenCounter
from kaito_ray.artifacts.limits import DATA
from kaito_ray.artifacts.source import Source, Stager
from kaito_ray.errors import KaitoRayError, Problem
from kaito_ray.manifest import Entry, Finding, Manifest, examine_manifest
from kaito_ray.manifest_plan import plan_manifest
from kaito_ray.plan import TunePlan
from kaito_ray.preset import Preset, load_catalogue
from kaito_ray.references import DOCKER_CONFIG_KEY
from kaito_ray.settings import Settings
from kaito_ray.tiny_model import cache_folder
from kaito_ray.tuning_schedule import outlook


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to say about the data of one Workspace; `lines` are for people."""

    workspace: str
    findings: tuple[Finding, ...]
    lines: tuple[str, ...] = ()


def check_data(sources: Iterable[Path], settings: Settings) -> Iterator[Verdict]:
    """A verdict for each Workspace of the files that tunes and can be planned; the others are validate's business."""
    for source in sources:
        manifest = examine_manifest(source, allow_private_urls=settings.allow_private_urls)
        for planned in plan_manifest(manifest, settings):
            if isinstance(planned.plan, TunePlan):
                try:
                    yield _verdict(planned.entry, planned.plan, manifest, settings)
                except KaitoRayError as error:
                    problem = planned.entry.finding(Problem(("tuning", "input"), str(error)))
                    yield Verdict(planned.entry.name, (problem,))


def _verdict(entry: Entry, plan: TunePlan, manifest: Manifest, settings: Settings) -> Verdict:
    volume = plan.input.get("volumeSource")
    if volume and "hostPath" not in volume:
        message = f"{next(iter(volume))} is a volume of a cluster, so its data is not read here"
        return Verdict(entry.name, (entry.finding(Problem(("tuning", "input"), message), "note"),))
    preset = load_catalogue(settings.presets_dir).get(plan.model)
    counter = _counter(preset)
    with tempfile.TemporaryDirectory(prefix="kaito-ray-data-") as work:
        report = asyncio.run(_read(plan, manifest, settings, counter, Path(work)))
    return Verdict(entry.name, report.findings, tuple(_lines(plan, report)))


def _counter(preset: Preset) -> Counter:
    """The model's own tokenizer where this machine has it or can fetch it."""
    try:
        from transformers import AutoTokenizer

        if preset.source == "builtin":
            from kaito_ray.tiny_model import model_path

            return TokenCounter(AutoTokenizer.from_pretrained(str(model_path())))
        return TokenCounter(AutoTokenizer.from_pretrained(preset.name, revision=preset.revision))
    except (ImportError, OSError, KaitoRayError):
        return RoughCounter()


async def _read(plan: TunePlan, manifest: Manifest, settings: Settings, counter: Counter, work: Path) -> Report:
    given, data, training = plan.input, plan.arguments["data"], plan.arguments["training"]

    def read(folder: Path) -> Report:
        return read_dataset(
            folder,
            work,
            wish=Wish(**{key: data[key] or "" for key in Wish.__dataclass_fields__}),
            limits=DATA,
            counter=counter,
            max_length=training["max_length"],
            splits=training.get("packing_strategy") in {"bfd_split", "wrapped"},
            pairs=plan.method == "dpo",
            path=data["path"],
            extension=data["extension"],
        )

    if given.get("volumeSource"):
        return await asyncio.to_thread(read, Path(given["volumeSource"]["hostPath"]["path"]))
    logins = work / "logins"
    logins.mkdir(mode=0o700)
    for name in given.get("imagePullSecrets", ()):
        if config := manifest.secret(name, plan.namespace).get(DOCKER_CONFIG_KEY):
            (logins / f"{name}.json").write_text(config)
    stager = Stager(
        Cache(cache_folder().parent / "artifacts"),
        DATA,
        allowed=settings.allow_private_urls,
        auth_dir=logins,
        folder="data",
    )
    source = Source.parse({key: given[key] for key in ("image", "imagePullSecrets", "urls") if given.get(key)})
    with await stager.stage(source) as staged:
        return await asyncio.to_thread(read, staged.path / "data" if source.image else staged.path)


def _lines(plan: TunePlan, report: Report) -> Iterator[str]:
    yield f"{plan.name}: {report.summary()[0]}"
    yield from (f"  {line}" for line in report.summary()[1:])
    if report.lengths is None:
        return
    yield from (f"    {line}" for line in report.lengths.chart())
    yield from (f"  sample: {sample}" for sample in report.samples)
    if not report.errors:
        yield f"  {outlook(plan, report.rows, report.lengths.total)}"
