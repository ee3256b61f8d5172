# SPDX-License-Identifier: Apache-2.0
"""What kaito-ray tells Ray Serve, against the Ray that is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from builders import a_serve_plan
from kaito_ray.plan import AdapterPlan, Autoscaling
from kaito_ray.serve_config import local_env, serve_config, serve_env

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize(
    "plan",
    [
        a_serve_plan(),
        a_serve_plan(replicas=3, adapters=(AdapterPlan("legal", {"path": "/mnt/legal"}, 0.5),)),
        a_serve_plan(autoscaling=Autoscaling(1, 4, 64)),
    ],
    ids=["plain", "adapters", "autoscaling"],
)
def test_serve_takes_the_config_and_ignores_nothing_of_it(plan: object) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = serve_config(plan)  # type: ignore[arg-type]
    parsed = ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True)
    [application] = parsed["applications"]
    assert application.keys() == config["applications"][0].keys()
    assert application["deployments"][0].keys() == config["applications"][0]["deployments"][0].keys()
    assert parsed.keys() == config.keys()


def test_every_variable_is_one_that_ray_vllm_torch_or_the_hub_client_reads() -> None:
    ports = {"metrics_port": 1, "stats_port": 2, "first_replica_port": 3, "last_replica_port": 4}
    env = serve_env(a_serve_plan(gpus_per_node=0)) | local_env(Path("/x"), **ports)
    serve, ray, vllm = (_source(name) for name in ("ray.serve", "ray", "vllm"))
    constants = (serve / "_private" / "constants.py").read_text()
    raylet = (ray / "core" / "src" / "ray" / "raylet" / "raylet").read_bytes()
    envs = (vllm / "envs.py").read_text() + (vllm / "platforms" / "cpu.py").read_text()
    usage = (ray / "_common" / "usage" / "usage_constants.py").read_text()
    hub = (_source("huggingface_hub") / "constants.py").read_text()
    dynamo = (_source("torch") / "_dynamo" / "config.py").read_text()
    unread = {
        name
        for name in env
        if f'"{name}"' not in constants
        and f'"{name}"' not in envs
        and f'"{name}"' not in usage
        and f'"{name}"' not in hub
        and f'"{name}"' not in dynamo
        # Settings of Ray's core, compiled in without the prefix.
        and name.removeprefix("RAY_").encode() not in raylet
    }
    assert unread == set()


def _source(package: str) -> Path:
    spec = find_spec(package)
    assert spec
    assert spec.origin
    return Path(spec.origin).parent
