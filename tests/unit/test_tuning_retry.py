# SPDX-License-Identifier: Apache-2.0
"""How often KubeRay may try a tuning job again, by what the job says."""

import pytest

from kaito_ray.tuning_event import Event, Failed, Started, progress_of
from kaito_ray.tuning_retry import RETRIES, backoff_limit

NOTHING: tuple[Event, ...] = ()
LOST = Failed("TuningFailed", "a worker was killed")
HOPELESS = Failed("InvalidData", "chats.jsonl:1 is empty", final=True)


def begun(step: int) -> Started:
    return Started(attempt=1, workers=1, total_steps=300, resumed_from=step)


@pytest.mark.parametrize(
    ("limit", "failed", "before", "after", "wanted"),
    [
        # Nothing is known, or nothing new.
        (RETRIES, 0, NOTHING, NOTHING, RETRIES),
        (RETRIES, 0, NOTHING, (begun(0),), RETRIES),
        (3, 1, (begun(20),), (begun(20),), 3),
        (RETRIES, 1, (begun(0),), (begun(0), LOST), RETRIES),
        # An attempt that got further is not held against the job, one that got nowhere is.
        (RETRIES, 1, (begun(0),), (begun(20),), 1 + RETRIES),
        (3, 2, (begun(20),), (begun(40),), 2 + RETRIES),
        (3, 2, (begun(20),), (begun(20),), 3),
        (3, 2, (begun(20),), (begun(0),), 3),
        # What is hopeless ends with this attempt, whether KubeRay has counted it or begun another one.
        (RETRIES, 0, NOTHING, (HOPELESS,), 0),
        (0, 1, (HOPELESS,), (HOPELESS,), 0),
        (RETRIES, 1, NOTHING, (HOPELESS,), 1),
        (5, 3, (begun(60),), (begun(60), HOPELESS), 3),
    ],
)
def test_the_limit_follows_what_attempts_were_worth(
    limit: int, failed: int, before: tuple[Event, ...], after: tuple[Event, ...], wanted: int
) -> None:
    assert backoff_limit(limit, failed, progress_of(before), progress_of(after)) == wanted
