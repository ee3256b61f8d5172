# SPDX-License-Identifier: Apache-2.0
"""`pytest tests/golden --update-golden` writes the golden files anew; read the diff before committing it."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> "Golden":
    return Golden(update=request.config.getoption("--update-golden", default=False))


class Golden:
    """Compares a text with a file of this folder."""

    def __init__(self, *, update: bool) -> None:
        self._update = update

    def check(self, name: str, text: str) -> None:
        file = Path(__file__).with_name(name)
        if self._update:
            file.write_text(text)
        assert file.exists(), f"{file.name} is missing: run pytest tests/golden --update-golden"
        assert text == file.read_text(), f"{file.name} differs: run pytest tests/golden --update-golden and review"
