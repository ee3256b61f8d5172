# SPDX-License-Identifier: Apache-2.0
"""How far a transfer is, by what was counted."""

from kaito_ray.artifacts.progress import Progress


def test_nothing_is_known_at_first() -> None:
    progress = Progress()
    assert (progress.bytes_per_second, progress.remaining_s, progress.total) == (0.0, None, 0)


def test_bytes_that_were_here_say_nothing_about_the_speed() -> None:
    progress = Progress()
    progress.expect(1000)
    progress.resume(900)
    assert (progress.done, progress.resumed, progress.bytes_per_second) == (900, 900, 0.0)
    progress.count(50)
    assert progress.bytes_per_second > 0
    assert progress.remaining_s is not None
    assert progress.remaining_s > 0


def test_what_has_to_come_again_is_taken_back() -> None:
    progress = Progress()
    progress.expect(100)
    progress.count(60)
    progress.count(-60)
    assert (progress.done, progress.bytes_per_second) == (0, 0.0)
    progress.count(100)
    progress.finish()
    assert (progress.done, progress.finished) == (100, True)
    assert progress.remaining_s == 0
