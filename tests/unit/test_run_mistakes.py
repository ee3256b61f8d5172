# SPDX-License-Identifier: Apache-2.0
"""What `kaito-ray run` says before anything is started: one sentence on stderr, exit code 1."""

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import a_document
from kaito_ray.cli import main
from kaito_ray.tiny_corpus import QUESTIONS
from waiting import free_port


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *documents: Any) -> str:
    """The error of a run that does not get far; asserts exit code 1 and an empty stdout."""
    file = tmp_path / "workspace.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    monkeypatch.setattr("sys.argv", ["kaito-ray", "run", str(file), "--port", str(free_port())])
    with pytest.raises(SystemExit) as left:
        main()
    shown = capsys.readouterr()
    assert left.value.code == 1
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return shown.err


def tiny(**overrides: Any) -> dict[str, Any]:
    return a_document(**{"inference": {"preset": {"name": "tiny-phi-3"}}, **overrides})


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ([tiny(inference={"preset": {"name": "tiny-phi-33"}})], "tiny-phi-3"),
        ([tiny(inference={"preset": {"name": "llama-3.3-70b-instruct"}})], "GiB"),
        ([tiny(name="one"), tiny(name="two")], "exactly one Workspace to run, it has one, two"),
        ([tiny(annotations={"kaito-ray.io/api-keys": "keys"})], "names the Secret keys"),
        ([tiny(inference={"template": {"spec": {"containers": [{"name": "a"}]}}})], "template"),
        (
            [tiny(inference={"preset": {"name": "tiny-phi-3"}, "adapters": [{"strength": "2"}]})],
            "inference.adapters[0]",
        ),
    ],
)
def test_mistakes_are_sentences(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    documents: list[Any],
    says: str,
) -> None:
    assert says in run(tmp_path, capsys, monkeypatch, *documents)


def test_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "workspace.yaml"
    file.write_text(yaml.safe_dump(tiny()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["kaito-ray", "run", str(file), "--port", port])
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 1
    assert f"port {port} cannot be used" in capsys.readouterr().err


def test_the_corpus_has_one_answer_each() -> None:
    questions = [question for question, _ in QUESTIONS]
    assert len(questions) == len(set(questions))
    assert all(answer.endswith((".", "!")) for _, answer in QUESTIONS)
