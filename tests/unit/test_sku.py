# SPDX-License-Identifier: Apache-2.0
"""GPU sizes: every one of the table under every spelling, and what stands for a machine or a slice."""

import csv
import os
from pathlib import Path

import pytest

from kaito_ray.errors import DoesNotFit, InvalidManifest, UnknownSize
from kaito_ray.plan_target import size_warnings, worker_size
from kaito_ray.sku import Sku, cpu_size, load_sizes, local_size, partitioned

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SIZES = load_sizes()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the table of sizes is not beside this checkout")
def test_every_size_of_the_table_is_known_under_both_spellings() -> None:
    rows = list(csv.DictReader((SHARED / "skus.csv").read_text(encoding="utf-8").splitlines()))
    assert [sku.name for sku in SIZES] == [row["size"] for row in rows]
    for row in rows:
        sku = SIZES.get(row["size"].upper())
        assert (sku.gpus, sku.memory_gib) == (int(row["gpu_count"]), float(row["gpu_mem_gib_each"]))
        assert sku.usd_per_hour == (float(row["usd_per_hour"]) if row["usd_per_hour"] else None)
        assert sku.status == row["status"]
        if row["kaito_name"]:
            assert SIZES.get(row["kaito_name"]) is sku


@pytest.mark.parametrize("size", list(SIZES), ids=lambda size: size.name)
def test_an_engine_sees_less_than_is_sold(size: Sku) -> None:
    assert 0 < size.gpu_gib < size.memory_gib
    assert 0 < worker_size(size).memory_gib < size.ram_gib
    assert 1 <= worker_size(size).cpus < size.vcpus


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Standard_NC6s_v3", ["retired", "Standard_NV36ads_A10_v5", "float16"]),
        ("Standard_NC4as_T4_v3", ["float16"]),
        ("Standard_ND128isr_NDR_GB200_v6", ["arm64"]),
        ("Standard_NC72ds_xl_RTXPRO6000BSE_v6", ["1/2 of a GPU", "not verified"]),
        ("Standard_NC24ads_A100_v4", ["no more capacity"]),
        ("Standard_NC40ads_H100_v5", []),
    ],
)
def test_a_size_warns_of_what_is_peculiar_about_it(name: str, words: list[str]) -> None:
    warnings = "\n".join(size_warnings(SIZES.get(name)))
    assert all(word in warnings for word in words)
    assert bool(words) == bool(warnings)


def test_a_wrong_size_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownSize, match="Standard_NC24ads_A100_v4"):
        SIZES.get("Standard_NC24ads_A100_v5")


def test_a_machine_is_a_size_without_gpus() -> None:
    assert (cpu_size(4, 16.0).gpus, cpu_size(4, 16.0).ram_gib) == (0, 16.0)
    here = local_size()
    assert here.vcpus == len(os.sched_getaffinity(0))
    assert 0.5 < here.ram_gib < 100_000


@pytest.mark.parametrize(
    ("profile", "memory_gib", "resource"),
    [("1g.10gb", 9.5, "nvidia.com/mig-1g.10gb"), ("3g.40gb", 38.0, "nvidia.com/mig-3g.40gb")],
)
def test_a_slice_counts_as_one_gpu_of_its_own_memory(profile: str, memory_gib: float, resource: str) -> None:
    cut = partitioned(SIZES.get("Standard_NC96ads_A100_v4"), mode="mig", profile=profile, count=None)
    assert (cut.gpus, cut.gpu_gib, cut.gpu_resource) == (1, memory_gib, resource)
    assert worker_size(cut).gpu_resource == resource


@pytest.mark.parametrize(
    ("size", "profile", "words"),
    [
        ("Standard_NV36ads_A10_v5", "1g.5gb", "cannot be sliced"),
        ("Standard_NC4as_T4_v3", "1g.5gb", "cannot be sliced"),
        ("Standard_ND96asr_v4", "7g.80gb", "has 40 GB"),
    ],
)
def test_a_slice_that_no_gpu_has_is_refused(size: str, profile: str, words: str) -> None:
    with pytest.raises(DoesNotFit, match=words):
        partitioned(SIZES.get(size), mode="mig", profile=profile, count=None)


def test_an_accelerator_partition_counts_whole_gpus() -> None:
    cut = partitioned(SIZES.get("Standard_NC96ads_A100_v4"), mode="accelerator", profile="", count=2)
    assert (cut.gpus, cut.gpu_gib, cut.gpu_resource) == (2, 79.14, "nvidia.com/gpu")


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "skus.yaml").write_text("sizes:\n  - name: x\n")
    with pytest.raises(InvalidManifest, match=r"skus\.yaml"):
        load_sizes(tmp_path)
