# SPDX-License-Identifier: Apache-2.0
"""The real registry, Debian's docker-registry, on 127.0.0.1 with a folder of its own, and skopeo to look into it."""

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

USER, PASSWORD = "me", "correct horse"
# bcrypt of the password above, the only kind of hash that the registry takes.
_HTPASSWD = "me:$2b$04$94dR1hRqQTEvSqIrZz9wWO9e14CLna6aOyJ9Wtp0zV1fdZ7Xnx1B2\n"


def require(*programs: str) -> None:
    """Skip the test with the name of the program that is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DockerRegistry:
    """One registry; it can be stopped and started again with what it holds."""

    def __init__(self, folder: Path, *, logins: bool = False) -> None:
        self.folder = folder
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self._logins = logins
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        passwords, config = self.folder / "htpasswd", self.folder / "config.json"
        passwords.write_text(_HTPASSWD)
        settings = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
        }
        if self._logins:
            settings["auth"] = {"htpasswd": {"realm": "test", "path": str(passwords)}}
        config.write_text(json.dumps(settings))  # JSON is YAML too
        self._process = await asyncio.create_subprocess_exec(
            "docker-registry",
            "serve",
            str(config),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        while True:
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            assert self._process.returncode is None, "docker-registry ended"
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Stop it by its own process id."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def image(self, name: str) -> str:
        """The reference of `team/adapter:1.0` in it."""
        return f"{self.host}/{name}"


@contextlib.asynccontextmanager
async def a_docker_registry(folder: Path, *, logins: bool = False) -> AsyncIterator[DockerRegistry]:
    """A running registry; skips where docker-registry is not installed."""
    require("docker-registry")
    registry = DockerRegistry(folder, logins=logins)
    await registry.start()
    try:
        yield registry
    finally:
        await registry.stop()


async def skopeo(*arguments: str) -> str:
    """Run skopeo; its output. Fails the test with what it says on stderr."""
    require("skopeo")
    process = await asyncio.create_subprocess_exec(
        "skopeo", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()
