# SPDX-License-Identifier: Apache-2.0
"""This machine as a size."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from kaito_ray import sku


def test_two_unequal_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that NVIDIA's driver brings is stood in for by one that prints what it prints."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034, 8.9'\necho 'NVIDIA A10, 22731, 8.6'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("importlib.metadata.version", _no_package)
    size = sku.local_size()
    assert (size.name, size.gpu, size.gpus, size.gpu_gib, size.bfloat16) == ("local", "NVIDIA A10", 2, 22.2, True)
    assert size.is_this_machine


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    size = sku.local_size()
    assert (size.name, size.gpus) == ("cpu", 0)
    assert size.vcpus >= 1
    assert size.ram_gib > 0.5


def _no_package(name: str) -> str:
    raise PackageNotFoundError(name)
