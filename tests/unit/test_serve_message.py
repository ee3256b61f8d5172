# SPDX-License-Identifier: Apache-2.0
"""What Ray Serve says of an application becomes one sentence."""

import pytest

from kaito_ray.serve_message import sentence

_TRACEBACK = """\
The deployment failed to start 3 times in a row. See controller logs for details. Error:
\x1b[36mray::ServeReplica:chat:Chat.initialize_and_get_metadata()\x1b[39m (pid=29617, ip=10.0.0.15)
  File "/app/engine.py", line 98, in start_engine
    raise RuntimeError(f"vLLM did not start: {reason}") from error
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}

The above exception was the direct cause of the following exception:

  File "/app/replica.py", line 44, in start
    self.engine = await start_engine(options)
RuntimeError: vLLM did not start: ValueError: Available memory is less than desired: lower max-model-len
"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (_TRACEBACK, "vLLM did not start: ValueError: Available memory is less than desired: lower max-model-len"),
        ("Deployment 'Chat' has 1 replicas\nthat take long.\n", "Deployment 'Chat' has 1 replicas that take long."),
        ("huggingface_hub.errors.GatedRepoError: 401 for x", "huggingface_hub.errors.GatedRepoError: 401 for x"),
        ("", ""),
    ],
)
def test_one_sentence(message: str, expected: str) -> None:
    assert sentence(message) == expected
