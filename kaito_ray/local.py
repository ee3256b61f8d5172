# SPDX-License-Identifier: Apache-2.0
"""Runs one Workspace on this machine's own Ray, without Kubernetes and without a GPU: `kaito-ray run`.

The manifest goes through the same planner and becomes the same Serve config as on a cluster; only the size of the
machine, and with it the data type and the resources, differ. Called by cli.py.
"""

import importlib.util
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from kaito_ray.errors import CannotRun, KaitoRayError
from kaito_ray.local_adapters import adapter_lines
from kaito_ray.local_tune import tune, tuning_packages
from kaito_ray.local_workspace import LocalWorkspace, load_workspace
from kaito_ray.serve_config import local_env, serve_config, serve_env
from kaito_ray.settings import Settings
from kaito_ray.stages import Stages

if TYPE_CHECKING:
    from kaito_ray.local_ray import LocalRay

_WATCH_MS = 500
_ANSWER_TIMEOUT_S = 600.0
# Packages of the extras `serve` and `serve-cpu` that this file and those it calls import.
_PACKAGES = ("httpx", "psutil", "ray", "vllm", "watchfiles")


def run(file: Path, *, port: int, once: str | None, settings: Settings) -> None:
    """Serve the Workspace in `file` until Ctrl-C, or until `once` is answered on stdout.

    Raises CannotRun for everything that this machine lacks, and the manifest's and the planner's own errors.
    """
    _require_packages()
    _require_port(port)
    stages = Stages()
    _arm_signals()
    with stages.stage("manifest", str(file)) as stage:
        workspace = load_workspace(file, settings)
        stage.note(f"Workspace {workspace.plan.name} from {file}")
    if workspace.tuning is not None:
        _require_packages(tuning_packages())
    for warning in dict.fromkeys((*(workspace.tuning.warnings if workspace.tuning else ()), *workspace.plan.warnings)):
        stages.say("note", warning)
    plan = workspace.plan
    stages.say("plan", f"{plan.model} in {plan.dtype} on this machine, context {plan.max_model_len}")
    with stages.stage("model") as stage:
        stage.note(workspace.fetch_model(stages, stage.note, settings.allow_private_urls))
    with stages.stage("ray") as stage:
        ray = _start_ray(workspace)
        _arm_signals()
        stage.note(f"dashboard {ray.dashboard_url}, its token {ray.token}")
    healthy = False
    try:
        if workspace.tuning is not None:
            tuned = tune(workspace.tuning, workspace.write_logins(ray.folder), ray, stages)
            workspace = workspace.pinned(tuned.digest)
        config = _config(workspace, ray, port)
        with stages.stage("engine") as stage:
            ray.deploy(config)
            ray.wait_until_running(stage.note)
            stage.note(f"{plan.served_model_name} answers on http://127.0.0.1:{port}")
        healthy = True
        _tell_adapters(config, workspace, port, stages, only_trouble=True)
        if once is not None:
            with stages.stage("answer"):
                answer = _ask(port, once, workspace.any_key)
            print(answer)  # the only thing on stdout
            return
        stages.say("ask", f'curl http://127.0.0.1:{port}/chat -d \'{{"prompt": "What is Kubernetes?"}}\'')
        stages.say("ready", f"save {file} to change adapters while it serves; Ctrl-C stops")
        _follow(file, workspace, ray, port, settings, stages)
    except KeyboardInterrupt:
        healthy = True  # the user ended it; there is nothing to look for in the logs
        stages.say("stop", "interrupted")
        if once is not None:
            raise
    finally:
        if not healthy:
            stages.say("logs", f"are kept in {ray.logs}")
        ray.stop(keep_logs=not healthy)


def _config(workspace: LocalWorkspace, ray: "LocalRay", port: int) -> dict[str, Any]:
    """The Serve config of the RayService, listening on this machine alone."""
    config = serve_config(
        workspace.plan,
        port=port,
        api_keys_dir=workspace.write_api_keys(ray.folder),
        registry_auth_dir=workspace.write_logins(ray.folder),
        model_folder=workspace.model_folder,
    )
    config["http_options"]["host"] = "127.0.0.1"
    return config


def _start_ray(workspace: LocalWorkspace) -> "LocalRay":
    from kaito_ray.local_ray import LocalRay

    plan = workspace.plan
    replicas = plan.autoscaling.max_replicas if plan.autoscaling else plan.replicas
    tuning = workspace.tuning
    workers_cpus = tuning.workers * tuning.arguments["cpus_per_worker"] if tuning is not None else 0
    return LocalRay(
        lambda folder, ports: serve_env(plan) | local_env(folder, **ports) | workspace.hub_env(),
        cpus=max(plan.placement.actor_cpus * replicas, workers_cpus),
        gpus=plan.gpus_per_node,
    )


def _follow(
    file: Path, workspace: LocalWorkspace, ray: "LocalRay", port: int, settings: Settings, stages: Stages
) -> None:
    """Apply each new version of `file`, and say so when the engine stops being healthy; ends by KeyboardInterrupt."""
    from watchfiles import watch

    # The folder is watched because editors replace a file by renaming another over it.
    changes = watch(
        file.parent,
        watch_filter=lambda _, path: Path(path).name == file.name,
        rust_timeout=_WATCH_MS,
        yield_on_timeout=True,
        recursive=False,
        debounce=100,
    )
    applied = _config(workspace, ray, port)
    healthy = True
    for change in changes:
        if not change:
            status, message = ray.application()
            if (status == "RUNNING") != healthy:
                healthy = status == "RUNNING"
                stages.say("engine", "healthy again" if healthy else f"{status.lower()}: {message}")
            continue
        if not file.exists():
            continue  # between the two halves of a replacement
        try:
            applied = _apply_change(load_workspace(file, settings), workspace, applied, ray, port, stages)
        except KaitoRayError as error:
            stages.say("change", f"not applied, the last good version goes on: {error}")


def _apply_change(
    changed: LocalWorkspace,
    workspace: LocalWorkspace,
    applied: dict[str, Any],
    ray: "LocalRay",
    port: int,
    stages: Stages,
) -> dict[str, Any]:
    """Apply what can change live and name what cannot; the config that is applied now."""
    digest = next((str(one.source.get("digest", "")) for one in workspace.plan.adapters), "")
    wanted = _config(changed.pinned(digest) if changed.tuning is not None else changed, ray, port)
    fixed = _differences(applied["applications"][0]["args"], wanted["applications"][0]["args"])
    if changed.plan.name != workspace.plan.name:
        fixed.append("metadata.name")
    if changed.tuning != workspace.tuning:
        fixed.append("tuning")
        wanted["applications"][0]["deployments"] = applied["applications"][0]["deployments"]
    if fixed:
        stages.say("change", f"needs a new start, so it waits until you stop and run again: {', '.join(fixed)}")
        wanted["applications"][0]["args"] = applied["applications"][0]["args"]
    if wanted == applied:
        if not fixed:
            stages.say("change", "nothing in it concerns what runs")
        return applied
    with stages.stage("change", "applying") as stage:
        ray.deploy(wanted)
        ray.wait_until_running(stage.note)
        stage.note("applied live")
    _tell_adapters(wanted, changed, port, stages)
    return wanted


def _tell_adapters(
    config: Mapping[str, Any], workspace: LocalWorkspace, port: int, stages: Stages, *, only_trouble: bool = False
) -> None:
    """One line for each adapter that the Serve config asks for: live, refused and why, or still on its way."""
    wanted = config["applications"][0]["deployments"][0]["user_config"]["adapters"]
    for name, (good, text) in adapter_lines(wanted, port, workspace.any_key).items() if wanted else ():
        if not (good and only_trouble):
            stages.say("adapter", f"{name} {text}")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys whose values differ, such as `engine.max-model-len`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}")
    return found


def _ask(port: int, prompt: str, key: str | None) -> str:
    """The answer of `/chat` on this machine to one question."""
    import httpx

    answer = httpx.post(
        f"http://127.0.0.1:{port}/chat",
        json={
            "messages": [{"role": "user", "content": prompt}],
            "return_full_text": False,
            "generate_kwargs": {"do_sample": False},
        },
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=_ANSWER_TIMEOUT_S,
        trust_env=False,
    )
    if answer.is_error:
        raise CannotRun(f"/chat answered {answer.status_code}: {answer.text.strip()}")
    return str(answer.json()["Result"]).strip()


def _require_packages(packages: Sequence[str] = _PACKAGES) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CannotRun(
            f"`kaito-ray run` needs the Python packages {', '.join(missing)}, which are not installed here; "
            "`make setup` in a checkout installs them"
        )


def _require_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CannotRun(
                f"port {port} cannot be used on this machine ({error.strerror}); choose another with --port"
            ) from None


def _interrupt(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _arm_signals() -> None:
    """SIGTERM ends a run the way Ctrl-C does, and both do also where a shell started the command in the background.

    Such a shell leaves SIGINT ignored, and Python then raises no KeyboardInterrupt by itself. Called again once Ray
    has started, because Ray puts a handler of its own in place that prints a stack.
    """
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
