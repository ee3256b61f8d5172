# SPDX-License-Identifier: Apache-2.0
"""The operator dies at any point between planning and the written status: never two pools, never one left behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from asyncio import CancelledError
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster import azure_errors as azure
from cluster.aks_rig import Rig, aks_rig
from cluster.fake_pool import size

TESTS = Path(__file__).resolve().parents[1]
A100, H100 = "Standard_NC24ads_A100_v4", "Standard_NC40ads_H100_v5"


class _Mortal:
    """Awaits a coroutine and drops it at its n-th suspension; the result is whether it lived to its end."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], suspensions: int) -> None:
        self._coroutine, self.left = coroutine, suspensions

    def __await__(self) -> Generator[Any, Any, bool]:
        steps = self._coroutine.__await__()
        failure: BaseException | None = None
        try:
            while True:
                waiting = steps.throw(failure) if failure else steps.send(None)
                self.left -= 1
                if self.left < 0:
                    # Nobody will look at what it waited for; a failure of that is not to be reported as forgotten.
                    if waiting is not None:
                        waiting.add_done_callback(lambda future: future.cancelled() or future.exception())
                    failure = CancelledError()
                    continue
                failure = None
                try:
                    yield waiting
                except Exception as error:  # what was waited for failed, and the coroutine may handle that
                    failure = error
        except StopIteration:
            return True
        except CancelledError:
            return False


@dataclass(slots=True)
class _Death:
    """Whether the operator died, and whether Azure then had a pool that no status told of."""

    came: bool = False
    left_a_pool: bool = False


async def _life_with_a_death(rig: Rig, suspensions: int) -> _Death:
    """From apply to ready with one death on the way."""
    most = 0
    death = _Death()
    for _ in range(400):
        rig.clock.now = max(rig.clock.now, *rig.due.values())
        if death.came:
            await rig.step("one")
        else:
            mortal = _Mortal(rig.step("one"), suspensions)
            if not await mortal:
                await asyncio.sleep(0.005)  # what was sent still arrives
                told = rig.documents["one"].get("status", {}).get("nodePool", {}).get("name")
                death = _Death(True, bool(rig.ours()) and not told)
                rig.restart()
            suspensions = mortal.left
        most = max(most, len([pool for pool in rig.ours() if pool.state != "Deleting"]))
        if rig.ready("one"):
            break
    assert rig.ready("one")
    assert most <= 1
    assert len(rig.ours()) == 1
    return death


async def test_death_at_every_await_of_the_way_to_ready() -> None:
    left_a_pool_without_status = 0
    for suspensions in range(200):
        async with aks_rig() as rig:
            rig.apply("one")
            death = await _life_with_a_death(rig, suspensions)
            if not death.came:
                break
            created = [put for put in rig.arm.calls("PUT") if put.status == 201]
            assert len(created) == 1, f"death at await {suspensions}"
            left_a_pool_without_status += death.left_a_pool
            await rig.delete("one")
            assert rig.ours() == []
    else:
        raise AssertionError("the way to ready has more awaits than were tried")
    assert suspensions > 20
    assert left_a_pool_without_status > 0, "no death fell between the pool and its status"


async def test_death_at_every_await_of_a_fallback() -> None:
    for suspensions in range(0, 400, 3):
        async with aks_rig() as rig:
            rig.arm.fail(azure.CAPACITY, when=size(A100), after_s=30)
            rig.apply("one")
            rig.annotate("one", instance_types=H100)
            death = await _life_with_a_death(rig, suspensions)
            assert [pool.properties["vmSize"] for pool in rig.ours()] == [H100]
            if not death.came:
                break
    assert suspensions > 60


async def test_death_at_every_await_of_a_deletion() -> None:
    for suspensions in range(100):
        async with aks_rig() as rig:
            rig.apply("one")
            await rig.run(lambda: rig.ready("one"))
            rig.clock.turn(20)
            workspace = rig.workspace("one")
            lived = await _Mortal(rig.provisioner.release(workspace), suspensions)
            await asyncio.sleep(0.005)
            rig.restart()
            await rig.delete("one")
            assert rig.ours() == []
            if lived:
                break
    assert 5 < suspensions < 99


async def test_what_a_dead_operator_left_is_collected_when_the_workspace_is_gone() -> None:
    async with aks_rig() as rig:
        rig.apply("one")
        await rig.run(lambda: rig.arm.calls("PUT") != [])
        rig.documents.clear()
        rig.restart()
        rig.clock.turn(300)
        await rig.provisioner.collect(set(), rig.clock.now)
        rig.clock.turn(300)
        assert rig.ours() == []


async def test_sigkill_at_every_request(tmp_path: Path) -> None:
    """The same with a process that is really killed, before and after each of its requests took effect."""
    file = tmp_path / "workspace.json"
    moments = 0
    for number in range(10):
        for when in ("before", "after"):
            async with aks_rig() as rig:
                rig.apply("one")
                file.write_text(json.dumps(rig.documents["one"]))
                process = await _start_pass(rig, file)

                def kill(seen: int, moment: str, at: tuple[int, str] = (number, when), pid: int = process.pid) -> None:
                    if (seen, moment) == at:
                        os.kill(pid, signal.SIGKILL)

                rig.arm.on_request = kill
                code = await process.wait()
                rig.arm.on_request = None
                if code == 0:
                    assert moments >= 6, "a pass makes at least three requests"
                    return
                assert code == -signal.SIGKILL
                moments += 1
                rig.documents["one"] = json.loads(file.read_text())
                rig.restart()
                await rig.run(lambda rig=rig: rig.ready("one"))  # type: ignore[misc]
                assert len(rig.ours()) == 1
                assert len([put for put in rig.arm.calls("PUT") if put.status == 201]) == 1
                await rig.delete("one")
                assert rig.ours() == []
    raise AssertionError("the pass never came to its end")


async def _start_pass(rig: Rig, file: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(TESTS / "cluster" / "aks_pass.py"),
        str(file),
        datetime.isoformat(rig.clock.now.astimezone(UTC)),
        env=os.environ
        | {
            "PYTHONPATH": str(TESTS),
            "KAITO_RAY_SUBSCRIPTION_ID": rig.arm.subscription,
            "KAITO_RAY_RESOURCE_GROUP": rig.arm.group,
            "KAITO_RAY_CLUSTER_NAME": rig.arm.cluster,
            "KAITO_RAY_LOCATION": rig.arm.location,
            "KAITO_RAY_ARM_ENDPOINT": rig.arm.url,
            "KAITO_RAY_AZURE_CREDENTIAL": "fake",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
