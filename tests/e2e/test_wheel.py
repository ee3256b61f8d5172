# SPDX-License-Identifier: Apache-2.0
"""The wheel alone, without the checkout: it holds the presets and every other file that the library reads."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.e2e


def test_wheel_plans_and_validates(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    assert {"kaito_ray", "serve_apps", "tune_jobs"} <= {path.name for path in unpacked.iterdir()}
    assert not (unpacked / "operator").exists()

    code = (
        "import sys, kaito_ray, kaito_ray.cli as cli; assert kaito_ray.__file__.startswith(sys.argv.pop(1)); cli.main()"
    )

    def kaito_ray(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(unpacked), *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(unpacked)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    planned = kaito_ray("plan", "--model", "phi-4", "--instance-type", "Standard_NC24ads_A100_v4", "-o", "json")
    assert '"nodes": 1' in planned
    assert "kind: RayService" in kaito_ray("render", "-f", str(ROOT / "manifests" / "samples" / "phi-3-mini.yaml"))
    assert kaito_ray("crd") == (ROOT / "manifests" / "crds" / "kaito.sh_workspaces.yaml").read_text()
