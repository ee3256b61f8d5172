# SPDX-License-Identifier: Apache-2.0
"""The folder `operator/` must never shadow the standard library's module of that name."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_operator_is_no_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_standard_operator_wins_when_started_in_the_checkout() -> None:
    code = "import collections, operator; print(operator.__spec__.origin)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip().endswith("operator.py")


def test_library_needs_no_heavy_package() -> None:
    """`import kaito_ray.<anything>` works with the core's dependencies alone."""
    modules = [
        "kaito_ray." + ".".join(path.relative_to(ROOT / "kaito_ray").with_suffix("").parts)
        for path in sorted((ROOT / "kaito_ray").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    heavy = ["kopf", "ray", "torch", "vllm", "peft", "trl", "bitsandbytes", "transformers", "datasets"]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip() == "[]"
