# SPDX-License-Identifier: Apache-2.0
"""The Serve application of a Workspace: one deployment, one hop from the proxy to vLLM's own server.

`build` is the import path in `serveConfigV2`, which kaito_ray/serve_config.py writes together with the environment
that the Ray processes need. `kaito-ray run` does all of it on one machine.
"""

import asyncio
from typing import Any

from ray import serve
from ray.serve import Application

from kaito_ray import names
from serve_apps.allow_list import AllowList
from serve_apps.arguments import Arguments
from serve_apps.metrics import publish_forever
from serve_apps.replica import Replica, Report

_EVERYBODY_S = 5.0


class ServedReplica(Replica):
    """A replica that Ray Serve runs, with what only Ray can do for it."""

    async def __serve_build_asgi_app__(self) -> AllowList:
        """As Replica does it, with metrics."""
        app = await super().__serve_build_asgi_app__()
        self._metrics = asyncio.create_task(publish_forever())
        return app

    @property
    def replica_id(self) -> str:
        """As Serve calls it."""
        return serve.get_replica_context().replica_tag

    async def adapter_reports(self) -> list[Report]:
        """What is loaded in every replica of this deployment, each asked for itself; one that is silent is left out."""
        everybody = serve.get_deployment_handle(names.SERVE_DEPLOYMENT, names.SERVE_APPLICATION)
        answers = everybody.broadcast("adapter_report")
        found = await answers.results_async(timeout_s=_EVERYBODY_S, return_exceptions=True)
        return [one for one in found if not isinstance(one, BaseException)]


# Late bound: the ASGI app exists only in the replica, where __serve_build_asgi_app__ makes it.
Chat = serve.deployment(name=names.SERVE_DEPLOYMENT)(serve.ingress()(ServedReplica))


def build(args: dict[str, Any]) -> Application:
    """The application for finished arguments; raises pydantic's ValidationError naming what is wrong with them."""
    return Chat.bind(Arguments.model_validate(args))
