# SPDX-License-Identifier: Apache-2.0
"""Judges the data of a tuning job as the job itself will, before nodes are bought for it.

What the operator runs in a pod on a node without GPUs (kaito_ray/render/lint.py):

    python -m tune_jobs.lint arguments.json [MESSAGE-FILE]    # by default the kubelet's, /dev/termination-log

Leaves with 0 for data that can be trained on, with 1 otherwise, and with one line of kaito_ray/tuning_event.py on
stdout: `data`, `failed` for what somebody must mend, `waiting` for a server that may be back. The file gets the same
line, cut to what a kubelet keeps. Without such a line nothing is known of the data.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kaito_ray.artifacts.limits import DATA
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactUnavailable, KaitoRayError
from kaito_ray.local_download import download
from kaito_ray.settings import Settings
from kaito_ray.tuning_event import Data, Failed, Waiting
from tune_jobs.arguments import Arguments
from tune_jobs.data import prepare
from tune_jobs.following import say
from tune_jobs.home import Home
from tune_jobs.publish import check_image
from tune_jobs.qlora import load_tokenizer

_MESSAGE_BYTES = 4096  # kubelet, MaxContainerTerminationMessageLength
# Ends before the kubelet ends the pod (render/lint.py).
_LIMITS = replace(DATA, seconds=540)
# Of the disk, for others: this node is not the job's.
_SPARE_SHARE = 0.2


def main(file: Path, message: Path = Path("/dev/termination-log")) -> int:
    """Judge the data of the job in `file`; the exit code."""
    verdict = judge(Arguments.read(file), Settings.from_env(os.environ).allow_private_urls)
    message.write_text(fitted(verdict))
    say(verdict)
    return 0 if isinstance(verdict, Data) else 1


def judge(arguments: Arguments, allow_private_urls: tuple[str, ...]) -> Data | Failed | Waiting:
    """The verdict; raises KaitoRayError when the data is too large for this place, which says nothing against it."""
    began = time.monotonic()
    try:
        check_image(arguments)
        tokenizer = find_tokenizer(arguments)
        data = prepare(
            arguments,
            Home.of(arguments),
            tokenizer,
            allow_private_urls,
            limits=_LIMITS,
            spare_share=_SPARE_SHARE,
        )
        return data.event()
    except KaitoRayError as error:
        if error.reason == Reason.DISK_TOO_SMALL or time.monotonic() - began >= _LIMITS.seconds:
            raise
        kind = Waiting if isinstance(error, ArtifactUnavailable) else Failed
        return kind(error.reason, str(error))


def find_tokenizer(arguments: Arguments) -> Any | None:
    """The model's tokenizer without its weights; None where the job alone has it, or the hub does not give it."""
    model = arguments.model
    if model.kind == "path":
        return None
    try:
        if model.kind == "hub":
            download(model.reference, model.revision, token=os.environ.get("HF_TOKEN"), weights=False)
        return load_tokenizer(arguments)
    except (KaitoRayError, ImportError, OSError, ValueError) as error:
        print(f"lengths are guessed, since there is no tokenizer: {error}", file=sys.stderr)
        return None


def fitted(verdict: Data | Failed | Waiting) -> str:
    """The verdict as a line that a kubelet keeps whole: with fewer samples, then warnings, or with its end cut off."""
    while (over := len(verdict.line().encode()) - _MESSAGE_BYTES) > 0:
        if not isinstance(verdict, Data):
            kept = verdict.message.encode()[: -over - 4].decode(errors="ignore")
            verdict = replace(verdict, message=f"{kept} ...")
        elif verdict.samples:
            verdict = replace(verdict, samples=verdict.samples[:-1])
        elif verdict.warnings:
            verdict = replace(verdict, warnings=verdict.warnings[:-1])
        else:
            verdict = replace(verdict, summary=verdict.summary[:-1])
    return verdict.line()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m tune_jobs.lint ARGUMENTS-JSON-FILE [MESSAGE-FILE]")
    try:
        sys.exit(main(*map(Path, sys.argv[1:])))
    except KaitoRayError as error:
        sys.exit(f"the data was not judged: {error}")
