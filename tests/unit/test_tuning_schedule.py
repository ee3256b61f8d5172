# SPDX-License-Identifier: Apache-2.0
"""How many steps a training takes, how long and at what price."""

from typing import Any

import pytest

from builders import a_workspace
from kaito_ray.plan import TunePlan, plan
from kaito_ray.preset import load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sku import load_sizes
from kaito_ray.tuning_schedule import Estimate, estimate, outlook, schedule
from tune_rig import a_tiny_tune_plan

CATALOGUE, SIZES = load_catalogue(), load_sizes()


@pytest.mark.parametrize(
    ("rows", "workers", "min_steps", "more", "expected"),
    [
        (1600, 1, None, {}, (3.0, 100, 300, 10)),
        (1600, 4, None, {}, (3.0, 25, 75, 3)),
        (1601, 1, None, {}, (3.0, 101, 303, 10)),
        (6, 1, 150, {}, (150.0, 1, 150, 7)),
        (6, 1, None, {"num_train_epochs": 2}, (2.0, 1, 2, 1)),
        (40, 1, 150, {}, (50.0, 3, 150, 7)),
        (15000, 1, 150, {}, (3.0, 938, 2814, 10)),
        (1600, 1, None, {"max_steps": 50}, (0.5, 100, 50, 2)),
        (1600, 1, None, {"logging_steps": 25}, (3.0, 100, 300, 25)),
        (1600, 1, None, {"num_train_epochs": 0.5}, (0.5, 100, 50, 2)),
    ],
)
def test_steps(
    rows: int, workers: int, min_steps: int | None, more: dict[str, Any], expected: tuple[float, int, int, float]
) -> None:
    training = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, **more}
    made = schedule(training, rows=rows, workers=workers, min_steps=min_steps)
    assert (made.epochs, made.steps_per_epoch, made.steps, made.logging_steps) == expected


def a_plan(model: str, size: str, method: str = "qlora") -> TunePlan:
    workspace = a_workspace(
        resource={"instanceType": size, "labelSelector": {"matchLabels": {"app": "a"}}},
        tuning={
            "preset": {"name": model},
            "method": method,
            "input": {"urls": ["https://data.example/a.jsonl"]},
            "output": {"image": "registry.example/a:1", "imagePushSecret": "push"},
        },
    )
    made = plan(workspace, CATALOGUE.get(model), SIZES.get(size), Settings())
    assert isinstance(made, TunePlan)
    return made


@pytest.mark.parametrize(
    ("model", "size", "tokens", "hours"),
    [
        ("phi-3-mini-4k-instruct", "Standard_NC24ads_A100_v4", 3_000_000, (0.5, 2)),
        ("phi-3-mini-4k-instruct", "Standard_NC6s_v3", 3_000_000, (1.5, 6)),
        ("phi-4", "Standard_NC96ads_A100_v4", 3_000_000, (0.4, 1.8)),
        ("phi-3-mini-4k-instruct", "Standard_NV36ads_A10_v5", 3_000_000, (1.3, 5)),
    ],
)
def test_time_is_of_the_right_order_and_price_follows(
    model: str, size: str, tokens: int, hours: tuple[float, float]
) -> None:
    made = a_plan(model, size)
    told = estimate(made, tokens, 3.0)
    assert told is not None
    assert hours[0] < told.seconds / 3600 < hours[1]
    if made.hourly_usd is not None:
        assert told.usd == pytest.approx(made.hourly_usd * told.seconds / 3600)


def test_pairs_take_longer_since_the_reference_reads_them_as_well() -> None:
    model, size = "phi-3-mini-4k-instruct", "Standard_NC24ads_A100_v4"
    answers, pairs = (estimate(a_plan(model, size, method), 1_000_000, 1.0) for method in ("qlora", "dpo"))
    assert answers is not None
    assert pairs is not None
    assert pairs.seconds == pytest.approx(answers.seconds * 8 / 6)


def test_nothing_is_said_about_hardware_of_unknown_speed() -> None:
    made = a_tiny_tune_plan()
    assert estimate(made, 100, 3.0) is None
    assert outlook(made, rows=6, tokens=100) == "150 steps, 150 epochs"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (Estimate(30, 0.002), "less than 2 min and less than a cent of training"),
        (Estimate(30, 0.02), "less than 2 min and $0.02 of training"),
        (Estimate(1800, None), "about 30 min of training"),
        (Estimate(2.5 * 3600, 9.175), "about 2.5 h and $9.18 of training"),
    ],
)
def test_estimates_as_people_read_them(told: Estimate, shown: str) -> None:
    assert str(told) == shown
