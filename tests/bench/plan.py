# SPDX-License-Identifier: Apache-2.0
"""How fast the planner is.

python tests/bench/plan.py      every model on every size, in one process; then `kaito-ray plan` of 100 Workspaces
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from kaito_ray.errors import DoesNotFit
from kaito_ray.plan import plan
from kaito_ray.preset import load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sku import load_sizes
from kaito_ray.workspace import parse_workspace


def _document(name: str, model: str, size: str) -> dict[str, object]:
    return {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": name},
        "resource": {"instanceType": size, "labelSelector": {"matchLabels": {"apps": "bench"}}},
        "inference": {"preset": {"name": model}},
    }


def all_models_on_all_sizes() -> str:
    """Plans made and refused, and the time, loading of the facts included."""
    started = time.perf_counter()
    catalogue, sizes, settings = load_catalogue(), load_sizes(), Settings()
    loaded = time.perf_counter()
    made = refused = 0
    for preset in catalogue:
        workspace = parse_workspace(_document("bench", preset.name, ""))
        for sku in sizes:
            try:
                plan(workspace, preset, sku, settings)
                made += 1
            except DoesNotFit:
                refused += 1
    ended = time.perf_counter()
    return (
        f"{made + refused} questions, {made} plans and {refused} refusals: {ended - loaded:.2f} s, "
        f"and {loaded - started:.2f} s to load the facts"
    )


def command_on_a_file(workspaces: int) -> str:
    """`kaito-ray plan` of a file, start-up included."""
    models = [preset.name for preset in load_catalogue()]
    documents = [
        _document(f"w{index}", models[index % len(models)], "Standard_ND96isr_H200_v5") for index in range(workspaces)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workspaces.yaml"
        file.write_text(yaml.safe_dump_all(documents))
        command = [
            sys.executable,
            "-c",
            "from kaito_ray.cli import main; main()",
            "plan",
            "-f",
            str(file),
            "-o",
            "json",
        ]
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return f"`kaito-ray plan` of {workspaces} Workspaces: {time.perf_counter() - started:.2f} s with start-up"


if __name__ == "__main__":
    print(all_models_on_all_sizes())
    print(command_on_a_file(100))
