# SPDX-License-Identifier: Apache-2.0
"""A plan in, the Serve config and its environment out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from builders import a_serve_plan
from kaito_ray.plan import AdapterPlan, Autoscaling, Placement, PodSize, ServePlan
from kaito_ray.serve_config import API_KEYS_DIR, SHUTDOWN_TIMEOUT_S, local_env, serve_config, serve_env
from serve_apps.arguments import Arguments, UserConfig

PORTS = {"metrics_port": 1, "stats_port": 2, "first_replica_port": 3, "last_replica_port": 4}


def deployment(plan: ServePlan) -> dict[str, Any]:
    [application] = serve_config(plan)["applications"]
    [options] = application["deployments"]
    assert isinstance(options, dict)
    return options


def test_the_app_accepts_what_the_plan_writes() -> None:
    plan = a_serve_plan(adapters=(AdapterPlan("b", {"path": "/b"}), AdapterPlan("a", {"path": "/a"}, 0.5)))
    [application] = serve_config(plan)["applications"]
    arguments = Arguments.model_validate(application["args"])
    assert arguments.model.reference == plan.source.folder
    assert "microsoft/Phi-3-mini-4k-instruct" in arguments.model.names
    assert arguments.engine == {"dtype": "bfloat16", "enable-lora": True, "max-model-len": 4096}
    config = UserConfig.model_validate(deployment(plan)["user_config"])
    assert [adapter.name for adapter in config.adapters] == ["a", "b"]
    assert config.max_queued_requests == 256
    assert config.follow_tags_s is None
    assert UserConfig.model_validate(deployment(replace(plan, follow_tags=True))["user_config"]).follow_tags_s == 300


def test_the_order_of_the_plan_does_not_show() -> None:
    one = a_serve_plan(engine={"b": 1, "a": 2}, adapters=(AdapterPlan("x", {"b": 1, "a": 2}), AdapterPlan("y", {})))
    two = a_serve_plan(engine={"a": 2, "b": 1}, adapters=(AdapterPlan("y", {}), AdapterPlan("x", {"a": 2, "b": 1})))
    assert json.dumps(serve_config(one)) == json.dumps(serve_config(two))


def test_adapters_change_nothing_but_user_config() -> None:
    without = serve_config(a_serve_plan())
    with_one = serve_config(a_serve_plan(adapters=(AdapterPlan("legal", {"path": "/x"}),)))
    for config in (without, with_one):
        del config["applications"][0]["deployments"][0]["user_config"]
    assert without == with_one


def test_fixed_replicas_or_autoscaling_never_both() -> None:
    assert deployment(a_serve_plan(replicas=2))["num_replicas"] == 2
    scaled = deployment(a_serve_plan(autoscaling=Autoscaling(1, 4, 16)))
    assert "num_replicas" not in scaled
    assert scaled["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16}


def test_bundles_only_across_nodes() -> None:
    assert "placement_group_bundles" not in deployment(a_serve_plan())
    bundles = ({"GPU": 1.0, "CPU": 1.0}, {"GPU": 1.0})
    options = deployment(a_serve_plan(placement=Placement("ray", 1, 0, bundles)))
    assert options["placement_group_bundles"] == [{"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0}]
    assert options["placement_group_strategy"] == "PACK"


def test_keys_are_read_from_the_mount_only_when_asked_for() -> None:
    def folder(plan: ServePlan, **more: Any) -> str | None:
        return Arguments.model_validate(serve_config(plan, **more)["applications"][0]["args"]).api_keys_dir

    assert folder(a_serve_plan()) is None
    assert folder(a_serve_plan(api_keys_secret="keys")) == API_KEYS_DIR
    assert folder(a_serve_plan(api_keys_secret="keys"), api_keys_dir="/tmp/keys") == "/tmp/keys"  # noqa: S108


def test_proxy_threads_follow_the_cores() -> None:
    threads = {
        cpus: serve_env(a_serve_plan(worker=PodSize(cpus, 8)))["RAY_SERVE_HAPROXY_NBTHREAD"] for cpus in (1, 2, 6, 96)
    }
    assert threads == {1: "1", 2: "1", 6: "3", 96: "4"}


def test_one_engine_process_where_there_is_no_gpu() -> None:
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in serve_env(a_serve_plan())
    assert serve_env(a_serve_plan(gpus_per_node=0))["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_what_takes_adapters_on_a_cpu_needs_no_compiler() -> None:
    plan = a_serve_plan(gpus_per_node=0)
    assert serve_env(plan)["TORCH_COMPILE_DISABLE"] == "1"
    without = replace(plan, engine={**plan.engine, "enable-lora": False})
    assert "TORCH_COMPILE_DISABLE" not in serve_env(without), "vLLM compiles a model without adapters"
    assert "TORCH_COMPILE_DISABLE" not in serve_env(a_serve_plan())


def test_environment_is_sorted_text() -> None:
    for env in (serve_env(a_serve_plan()), local_env(Path("/tmp/r"), **PORTS)):  # noqa: S108
        assert list(env) == sorted(env)
        assert all(isinstance(value, str) for value in env.values())


def test_two_local_runs_share_no_file() -> None:
    one = local_env(Path("/tmp/a"), **PORTS)  # noqa: S108
    two = local_env(Path("/tmp/b"), **PORTS)  # noqa: S108
    shared = {name for name in one if one[name] == two[name] and one[name].startswith("/")}
    assert not shared


def test_requests_get_time_to_finish() -> None:
    assert deployment(a_serve_plan())["graceful_shutdown_timeout_s"] == SHUTDOWN_TIMEOUT_S
