# SPDX-License-Identifier: Apache-2.0
"""Both servers of the serving bench without a model: what is left is their own work.

    python tests/bench/fake_app.py --model=... --port=...       vLLM's server on the fake core

`build` is the import path of our Serve application on the same core.
"""

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STEP_S = 0.002


def build(args: dict[str, Any]) -> "Application":
    """serve_apps.chat on the fake core."""
    from ray import serve

    from kaito_ray import names
    from serve_apps.arguments import Arguments
    from serve_apps.replica import Replica

    class FakeReplica(Replica):
        def __init__(self, arguments: Arguments) -> None:
            import fake_core

            fake_core.install(STEP_S)
            super().__init__(arguments)

    deployment = serve.deployment(name=names.SERVE_DEPLOYMENT)(serve.ingress()(FakeReplica))
    return deployment.bind(Arguments.model_validate(args))


if __name__ == "__main__":
    import fake_core

    fake_core.install(STEP_S)
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
