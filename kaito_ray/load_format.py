# SPDX-License-Identifier: Apache-2.0
"""Where the pods have the model in; how vLLM reads its safetensors out. Called by plan_serve.py.

Measured with `make bench-loading`: 1 GiB in four shards on a virtual machine's disk, 2 cores, lowest to highest of two
rounds, in MiB/s:

                                  lazy            eager          prefetch
    in the page cache    10,957 to 13,639    808 to 1,114      838 to 6,289
    on the disk               726 to 2,268    560 to 740     1,942 to 2,247

So what was fetched just before, and still is in the page cache, is mapped (`lazy`, what vLLM does by itself); what lies
ready on a volume is read ahead, as long as it fits into the memory of the pod. Run:ai's streamer and fastsafetensors
are in no image of kaito-ray; an image that has them can ask for them with `load-format` in inference.config.
"""

from collections.abc import Mapping
from typing import Any

from kaito_ray.plan import ModelSource

# Of the pod's memory; vLLM itself warns beyond nine tenths of what is free.
_SHARE = 0.7
_OWN = {"load-format", "model-loader-extra-config", "safetensors-load-strategy"}


def load_flags(
    source: ModelSource, weights_gib: float, memory_gib: float, flags: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What to add to `flags`; nothing where they say themselves how weights are read."""
    volume = source.volume
    if volume is None or volume.is_fetched_into or weights_gib > _SHARE * memory_gib or _OWN & flags.keys():
        return {}
    return {"safetensors-load-strategy": "prefetch"}
