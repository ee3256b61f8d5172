# SPDX-License-Identifier: Apache-2.0
"""The adapters of a replica: what is loaded after each wish, and what is said about the rest.

vLLM's engine is the one part that is not real here: `Engine` notes what it is told, at the methods that
serve_apps/adapters.py calls.
"""

import asyncio
import contextlib
import gzip
import itertools
import os
import pickle
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from adapter_files import a_base, adapter_tensors, an_adapter
from archives import a_tar
from fake_registry import FakeRegistry
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.limits import ADAPTER
from kaito_ray.artifacts.prepare import adapter_stager
from kaito_ray.artifacts.reason import Reason
from serve_apps.adapters import Adapters
from serve_apps.arguments import Adapter
from web import serving

pytestmark = pytest.mark.filterwarnings("default")

LIMITS = replace(ADAPTER, attempts=1, seconds=20)


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


class Engine:
    """What the engine was told, and what runs on it."""

    def __init__(self, base: Path) -> None:
        self.vllm_config = SimpleNamespace(lora_config=SimpleNamespace(max_lora_rank=64))
        self.model_config = SimpleNamespace(model=str(base), revision=None, get_vocab_size=lambda: 100)
        self.output_processor = SimpleNamespace(request_states={})
        self.loaded: dict[int, Any] = {}
        self.steps: list[str] = []
        """Loads, and steps in which tokens were made, as they came."""
        self.deaf = False
        """Whether adapters change nothing."""

    async def add_lora(self, request: Any) -> bool:
        assert names(request.lora_path) == {"adapter_config.json", "adapter_model.safetensors"}
        self.steps.append("load")
        await asyncio.sleep(0)
        self.loaded[request.lora_int_id] = request
        return True

    async def remove_lora(self, number: int) -> bool:
        return self.loaded.pop(number, None) is not None

    async def generate(self, *_: Any, lora_request: Any) -> AsyncIterator[Any]:
        value = -1.0 if lora_request is None or self.deaf else -2.0
        await asyncio.sleep(0)
        self.steps.append("tokens")
        yield SimpleNamespace(outputs=[SimpleNamespace(logprobs=[{7: SimpleNamespace(logprob=value)}])])


class Models:
    """The parts of vLLM's OpenAIServingModels that decide which adapter a request gets."""

    def __init__(self, base: Path) -> None:
        self.engine_client = Engine(base)
        self.base_model_paths = [SimpleNamespace(name="tiny")]
        self.lora_requests: dict[str, Any] = {}
        numbers = itertools.count(1)
        self.lora_id_counter = SimpleNamespace(inc=lambda _: next(numbers))

    def is_base_model(self, name: str) -> bool:
        return name == "tiny"

    def model_name(self, request: Any = None) -> str:
        return str(request.lora_name) if request else "tiny"

    async def show_available_models(self) -> Any:
        return SimpleNamespace(data=[])


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = Models(a_base(folder / "base"))
        self.engine = self.models.engine_client
        self.cache = Cache(folder / "cache")
        stager = adapter_stager(self.cache, limits=LIMITS, allowed=("127.0.0.1",))
        self.adapters = Adapters(self.models, stager)

    async def apply(self, *wanted: tuple[str, Any] | tuple[str, Any, float]) -> dict[str, dict[str, Any]]:
        """Ask for adapters as name, source (a path or a mapping) and strength; the states by name."""
        asked = []
        for name, source, *strength in wanted:
            where = {"path": str(source)} if isinstance(source, Path) else source
            asked.append(Adapter(name=name, source=where, strength=strength[0] if strength else 1.0))
        self.adapters.apply(asked)
        await self.adapters.wait_until_tried(20)
        return self.states()

    def states(self) -> dict[str, dict[str, Any]]:
        return {state["name"]: state for state in self.adapters.states()}

    def answering(self) -> dict[str, str]:
        """The path that each name's requests get now; all of them are in the engine."""
        requests = self.models.lora_requests
        assert {request.lora_int_id for request in requests.values()} <= self.engine.loaded.keys()
        return {name: request.lora_path for name, request in requests.items()}

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_add_replace_and_remove(rig: Rig) -> None:
    one = an_adapter(rig.folder / "one")
    state = (await rig.apply(("a", one)))["a"]
    assert (state["state"], state["rank"], state["error"]) == ("Ready", 8, "")
    assert state["digest"].startswith("sha256:")
    assert state["size_bytes"] > 0
    first = rig.answering()["a"]
    again = await rig.apply(("a", one))
    assert (rig.answering()["a"], again["a"]) == (first, state)
    an_adapter(rig.folder / "two", rank=16)
    changed = await rig.apply(("a", rig.folder / "two"))
    assert (changed["a"]["rank"], changed["a"]["state"]) == (16, "Ready")
    assert rig.answering()["a"] != first
    await rig.until(lambda: len(rig.engine.loaded) == 1)
    assert await rig.apply() == {}
    assert rig.answering() == {}
    await rig.until(lambda: not rig.engine.loaded)


async def test_requests_under_way_keep_the_version_they_began_with(rig: Rig) -> None:
    await rig.apply(("a", an_adapter(rig.folder / "one")))
    old = rig.models.lora_requests["a"]
    rig.engine.output_processor.request_states["r"] = SimpleNamespace(lora_name=old.lora_name)
    await rig.apply(("a", an_adapter(rig.folder / "two", rank=16)))
    await rig.apply()
    assert old.lora_int_id in rig.engine.loaded
    # Its files must stay too: the engine reads them again when it swaps adapters.
    with contextlib.suppress(Exception):
        await rig.cache.make_room(1 << 60)
    assert names(old.lora_path)
    rig.engine.output_processor.request_states.clear()
    await rig.until(lambda: not rig.engine.loaded)


async def test_a_strength_of_its_own(rig: Rig) -> None:
    one = an_adapter(rig.folder / "one")
    states = await rig.apply(("full", one), ("half", one, 0.5), ("none", one, 0.0))
    assert {name: (state["state"], state["strength"]) for name, state in states.items()} == {
        "full": ("Ready", 1.0),
        "half": ("Ready", 0.5),
        "none": ("Ready", 0.0),
    }
    assert len(set(rig.answering().values())) == 3
    assert len({state["digest"] for state in states.values()}) == 1


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())


async def test_bad_ones_are_reported_and_good_ones_answer(rig: Rig) -> None:
    folder = rig.folder
    pickled = an_adapter(folder / "pickled")
    (pickled / "adapter_model.safetensors").unlink()
    (pickled / "adapter_model.bin").write_bytes(pickle.dumps(Explosive()))
    truncated = an_adapter(folder / "truncated") / "adapter_model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    zero = {name: value * ("lora_A" in name) for name, value in adapter_tensors().items()}
    states = await rig.apply(
        ("good", an_adapter(folder / "good")),
        ("missing", folder / "nowhere"),
        ("pickled", pickled),
        ("truncated", truncated.parent),
        ("big", an_adapter(folder / "big", rank=128)),
        ("dora", an_adapter(folder / "dora", use_dora=True)),
        ("saves", an_adapter(folder / "saves", modules_to_save=["lm_head"])),
        ("empty", an_adapter(folder / "empty", target_modules=[])),
        ("other", an_adapter(folder / "other", tensors=adapter_tensors(hidden=64), base_model_name_or_path="x/llama")),
        ("zero", an_adapter(folder / "zero", tensors=zero)),
        ("private", {"urls": ["http://169.254.169.254/adapter.tar"]}),
        ("tag", {"image": "127.0.0.1:1/team/adapter:1"}),
        ("untuned", {"workspace": "tune-me"}),
        ("tiny", an_adapter(folder / "base-name")),
    )
    assert {name: state["reason"] for name, state in states.items()} == {
        "good": "",
        "missing": Reason.PATH_NOT_FOUND,
        "pickled": Reason.PICKLE,
        "truncated": Reason.CORRUPT_WEIGHTS,
        "big": Reason.RANK_TOO_HIGH,
        "dora": Reason.UNSUPPORTED_FEATURE,
        "saves": Reason.UNSUPPORTED_FEATURE,
        "empty": Reason.INVALID_CONFIG,
        "other": Reason.WRONG_BASE,
        "zero": Reason.CHANGES_NOTHING,
        "private": Reason.URL_REFUSED,
        "tag": Reason.CONNECTION_FAILED,
        "untuned": Reason.NOT_TUNED,
        "tiny": Reason.INVALID_SOURCE,
    }
    for name, state in states.items():
        assert (state["state"] == "Failed", bool(state["error"])) == (name != "good", name != "good")
    assert rig.answering().keys() == {"good"}


async def test_a_bad_replacement_leaves_the_good_version(rig: Rig) -> None:
    before = (await rig.apply(("a", an_adapter(rig.folder / "one"))))["a"]
    path = rig.answering()["a"]
    state = (await rig.apply(("a", an_adapter(rig.folder / "two", rank=128))))["a"]
    assert (state["state"], state["reason"]) == ("Failed", Reason.RANK_TOO_HIGH)
    assert (state["digest"], state["rank"]) == (before["digest"], 8)
    assert state["source"] == {"path": str(rig.folder / "two")}  # what is asked for, and not had
    assert rig.answering()["a"] == path


async def test_the_digest_that_was_found_can_be_pinned_without_a_reload(rig: Rig) -> None:
    one = an_adapter(rig.folder / "one")
    found = (await rig.apply(("a", one)))["a"]
    number = rig.models.lora_requests["a"].lora_int_id
    pinned = {"path": str(one), "digest": found["digest"]}
    asked = asyncio.create_task(rig.apply(("a", pinned)))
    await asyncio.sleep(0)
    assert rig.states()["a"] == {**found, "source": pinned}  # at no moment is it on its way
    await asked
    assert rig.models.lora_requests["a"].lora_int_id == number
    other = (await rig.apply(("a", {**pinned, "digest": f"sha256:{'0' * 64}"})))["a"]
    assert (other["state"], other["reason"]) == ("Failed", Reason.DIGEST_MISMATCH)
    assert rig.models.lora_requests["a"].lora_int_id == number


async def test_an_adapter_without_effect_is_flagged(rig: Rig) -> None:
    rig.engine.deaf = True
    state = (await rig.apply(("a", an_adapter(rig.folder / "one"))))["a"]
    assert (state["state"], state["reason"]) == ("Ready", Reason.CHANGES_NOTHING)
    rig.adapters.apply([Adapter(name="a", source=state["source"])], follow_s=300)  # tried again, and as useless
    await rig.adapters.wait_until_tried(20)
    assert rig.states()["a"] == state
    assert "same probabilities with and without" in state["error"]


async def test_a_source_that_comes_back_is_taken_up_by_itself(rig: Rig) -> None:
    adapter = an_adapter(rig.folder / "one")
    down = True

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503) if down else web.FileResponse(adapter / request.path.rpartition("/")[2])

    async with serving(handler) as url:
        urls = {"urls": [f"{url}/adapter_config.json", f"{url}/adapter_model.safetensors"]}
        state = (await rig.apply(("a", urls)))["a"]
        assert (state["state"], state["reason"]) == ("Failed", Reason.SERVER_ERROR)
        down = False
        await rig.until(lambda: rig.states()["a"]["state"] == "Ready")
    assert rig.answering().keys() == {"a"}


async def test_a_tag_is_followed_where_that_is_asked_for(rig: Rig) -> None:
    registry = FakeRegistry()

    def publish(rank: int) -> str:
        folder = an_adapter(rig.folder / f"rank-{rank}", rank=rank)
        files = [(f"data/{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())]
        return registry.add_image("1.0", gzip.compress(a_tar(*files)))

    first = publish(8)
    async with serving(registry.handle) as url:
        adapter = Adapter(name="a", source={"image": f"{url.removeprefix('http://')}/team/adapter:1.0"})
        rig.adapters.apply([adapter])
        await rig.adapters.wait_until_tried(20)
        assert rig.states()["a"]["digest"] == first
        second = publish(16)
        rig.adapters.apply([adapter])
        await rig.adapters.wait_until_tried(20)
        assert rig.states()["a"]["digest"] == first  # what a tag meant stays
        rig.adapters.apply([adapter], follow_s=0.05)
        await rig.adapters.wait_until_tried(20)
        assert (rig.states()["a"]["digest"], rig.states()["a"]["rank"]) == (second, 16)
        third = publish(32)
        await rig.until(lambda: rig.states()["a"]["digest"] == third)
        # A registry that is away for a while, and a version that cannot be loaded, leave the one that answers.
        registry.fault = lambda _: web.Response(status=503)
        await asyncio.sleep(0.2)
        registry.fault = lambda _: None
        publish(128)
        await rig.until(lambda: rig.states()["a"]["reason"] == Reason.RANK_TOO_HIGH)
        assert rig.states()["a"]["digest"] == third
        rig.adapters.apply([])


async def test_the_newest_wish_does_not_wait_for_the_one_before(rig: Rig) -> None:
    asked, forever = asyncio.Event(), asyncio.Event()

    async def handler(_: web.Request) -> web.StreamResponse:
        asked.set()
        await forever.wait()
        return web.Response()

    async with serving(handler) as url:
        slow = asyncio.create_task(rig.apply(("slow", {"urls": [f"{url}/x"]}), ("a", an_adapter(rig.folder / "one"))))
        await asked.wait()
        states = await rig.apply(("a", rig.folder / "one"), ("b", an_adapter(rig.folder / "two")))
        assert {name: state["state"] for name, state in states.items()} == {"a": "Ready", "b": "Ready"}
        await slow
        forever.set()
    assert rig.states().keys() == {"a", "b"}


async def test_requests_get_their_tokens_between_two_loads(rig: Rig) -> None:
    folders = [an_adapter(rig.folder / str(index), tensors=adapter_tensors(seed=index)) for index in range(6)]
    states = await rig.apply(*((f"n{index}", folder) for index, folder in enumerate(folders)))
    assert {state["state"] for state in states.values()} == {"Ready"}
    loads = [step for step in rig.engine.steps if step == "load"]
    assert len(loads) == 6
    assert ("load", "load") not in itertools.pairwise(rig.engine.steps)


async def test_a_hundred_adapters_come_and_go(rig: Rig) -> None:
    folders = [an_adapter(rig.folder / str(index), tensors=adapter_tensors(seed=index)) for index in range(10)]
    wishes = []
    for step in range(100):
        wanted = [(f"n{index}", folders[(index + step) % 10]) for index in range(step % 5)]
        wishes.append(asyncio.create_task(rig.apply(*wanted)))
        await asyncio.sleep(0.001)
    await asyncio.gather(*wishes)
    await rig.until(lambda: all(state["state"] == "Ready" for state in rig.states().values()))
    assert rig.answering().keys() == {"n0", "n1", "n2", "n3"}
    await rig.until(lambda: len(rig.engine.loaded) == 4)
    await rig.apply()
    await rig.until(lambda: not rig.engine.loaded)
