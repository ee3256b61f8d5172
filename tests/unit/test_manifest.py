# SPDX-License-Identifier: Apache-2.0
"""A YAML file in, its Workspaces, ConfigMaps, Secrets and problems, each with a line, out."""

import base64
import io
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kaito_ray.errors import InvalidManifest
from kaito_ray.manifest import examine_manifest, read_manifest

WORKSPACE = """\
apiVersion: kaito.sh/v1beta1
kind: Workspace
metadata:
  name: {name}
resource:
  instanceType: Standard_NC24ads_A100_v4
  labelSelector:
    matchLabels:
      apps: phi-3
inference:
  preset:
    name: phi-3-mini-4k-instruct
"""


def a_file(*names: str) -> str:
    return "---\n".join(WORKSPACE.format(name=name) for name in names)


def problems(text: str) -> list[str]:
    return [str(problem) for problem in examine_manifest(text).problems]


def test_many_documents_are_read_in_order() -> None:
    manifest = read_manifest(a_file("a", "b", "c"))
    assert [workspace.metadata.name for workspace in manifest.workspaces] == ["a", "b", "c"]


def test_a_problem_has_its_line() -> None:
    text = a_file("a", "b").replace("instanceType: Standard_NC24ads_A100_v4\n", "instanceType: 5\n", 1)
    text += "  adaptors: []\n"
    assert problems(text) == [
        'text:6 resource.instanceType: must be a string, got 5; write "5" in quotes',
        "text:26 inference.adaptors: is not a field; did you mean adapters?",
    ]


def test_a_missing_field_has_the_line_of_what_it_is_missing_in() -> None:
    (problem,) = problems(a_file("a").replace("    name: phi-3-mini-4k-instruct\n", "    accessMode: public\n"))
    assert problem.startswith("text:11 inference.preset.name: is missing")


def test_one_broken_document_does_not_hide_the_others() -> None:
    text = f"a: [\n---\n{a_file('Good')}---\nb: 'x\n"
    assert [problem.split()[0] for problem in problems(text)] == ["text:1", "text:6", "text:16"]


def test_read_manifest_lists_every_problem() -> None:
    with pytest.raises(InvalidManifest) as caught:
        read_manifest(a_file("A", "B"))
    assert [str(problem).split(": ")[0] for problem in caught.value.problems] == [
        "text:4 metadata.name",
        "text:17 metadata.name",
    ]


# Texts, and how each is refused: line and words.
@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "is empty"),
        ("# nothing\n---\n", 1, "is empty"),
        ("just words", 1, 'must be a mapping with apiVersion, kind and metadata, got "just words"'),
        ("- a\n", 1, "got a list"),
        ("x: 1\n", 1, "kind: is missing"),
        ("kind: 5\n", 1, "kind: is missing or no string"),
        ("apiVersion: kaito.sh/v1beta1\nkind: workspace\n", 2, "did you mean Workspace?"),
        ("apiVersion: kaito.sh/v1beta1\nkind: InferenceSet\n", 2, "write a Workspace with inference.autoscaling"),
        ("a: 1\nb:\n\tc: 2\n", 3, "is indented with a tab"),
        ("a: b: c\n", 1, "is not YAML"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "is not YAML"),
        ("a: 1\nb: 2\na: 3\n", 3, '"a" is given twice, first in line 1'),
        ("a: 1\nb: \x07\n", 2, "U+0007"),
        ("a: !secret x\n", 1, "cannot be read as !secret"),
        ("? [a, b]\n: c\n", 1, "must be plain text"),
        ("a: &a [*a]\n", 1, "stands inside or before its own &a"),
        ("a: *b\n", 1, "stands inside or before its own &b"),
        ("a: &x 1\nb:\n  <<: *x\n", 3, "<< can only merge mappings"),
        ("a: 1\n...\nb: 2\n", 3, "is not YAML"),
        ("kind: List\nitems: 5\n", 2, "items: must be a list"),
        ("[" * 100_000, 1, "nested deeper than 64 levels"),
        ("- " * 100_000, 1, "nested deeper than 64 levels"),
        ("{a: " * 100_000, 1, "nested deeper than 64 levels"),
    ],
)
def test_unreadable_texts_are_refused_in_a_sentence(text: str, line: int, words: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"text:{line} ")
    assert words in problem


def test_aliases_that_multiply_are_stopped() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (problem,) = problems("\n".join(levels))
    assert "grows beyond 50000 values" in problem


def test_aliases_and_merges_work() -> None:
    text = a_file("a").replace("resource:\n", "resource: &nodes\n")
    text += "---\n" + a_file("b").replace("    matchLabels:\n      apps: phi-3\n", "    <<: {matchLabels: {apps: x}}\n")
    assert [one.resource.label_selector.match_labels for one in read_manifest(text).workspaces] == [
        {"apps": "phi-3"},
        {"apps": "x"},
    ]


def test_words_that_yaml_takes_for_other_things() -> None:
    text = a_file("a").replace("apps: phi-3", "apps: 2026-01-01").replace("kind: Workspace", "kind: !!str Workspace")
    assert read_manifest(text).workspaces[0].resource.label_selector.match_labels == {"apps": "2026-01-01"}
    assert 'write "true" in quotes' in problems(a_file("a").replace("apps: phi-3", "apps: yes"))[0]
    assert (
        "must be a whole number, got 1.5"
        in problems(a_file("a").replace("resource:\n", "resource:\n  count: 1.5\n"))[0]
    )


def test_a_list_is_its_items() -> None:
    items = "".join("- " + WORKSPACE.format(name=name).replace("\n", "\n  ").rstrip(" ") for name in ("fine", "Bad"))
    manifest = examine_manifest(f"apiVersion: v1\nkind: List\nitems:\n{items}")
    assert [workspace.metadata.name for workspace in manifest.workspaces] == ["fine"]
    assert [str(problem).split(": ")[0] for problem in manifest.problems] == ["text:19 metadata.name"]


def test_a_name_can_be_given_once() -> None:
    (problem,) = problems(a_file("a", "b", "a"))
    assert problem == "text:30 metadata.name: is already the name of the Workspace in line 1"
    assert problems(a_file("a") + "---\n" + a_file("a").replace("name: a\n", "name: a\n  namespace: other\n")) == []


def test_config_maps_and_secrets_stand_beside() -> None:
    encoded = base64.b64encode(b"hf_token").decode()
    text = f"""\
{a_file("a")}---
apiVersion: v1
kind: ConfigMap
metadata: {{name: flags}}
data:
  inference_config.yaml: |
    vllm: {{}}
---
apiVersion: v1
kind: Secret
metadata: {{name: hub, namespace: ml}}
data: {{HF_TOKEN: {encoded}, other: {encoded}}}
stringData: {{other: plain}}
"""
    manifest = read_manifest(text)
    assert manifest.config_map("flags") == {"inference_config.yaml": "vllm: {}\n"}
    assert manifest.config_map("flags", "ml") is None
    assert manifest.secret("hub") == {"HF_TOKEN": "hf_token", "other": "plain"}
    assert manifest.secret("hub", "default") == {}
    assert "hf_token" not in repr(manifest)


def test_a_broken_secret_is_refused_without_showing_it() -> None:
    text = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata:\n  key: hunter-2!\n  number: 42\n"
    found = problems(text)
    assert found == [
        "text:5 data.key: is not base64; plain text belongs into stringData",
        "text:6 data.number: must be a string; write it in quotes",
    ]


def test_other_kinds_are_passed_over() -> None:
    manifest = examine_manifest("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\n" + a_file("a"))
    assert manifest.problems == ()
    assert [str(finding) for finding in manifest.findings] == ["text:2 note: Deployment is passed over"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: 1\nb: \xff\n")
    for path, words in (
        (tmp_path / "none.yaml", ":1 there is no such file"),
        (tmp_path, ":1 is a folder"),
        (binary, ":2 is not UTF-8: byte 0xff"),
    ):
        (problem,) = examine_manifest(path).problems
        assert str(problem).startswith(f"{path}{words}")


def test_windows_text_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + a_file("a", "b").replace("\n", "\r\n").encode())
    assert len(read_manifest(file).workspaces) == 2


def test_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(a_file("a").encode())))
    assert read_manifest(Path("-")).workspaces[0].metadata.name == "a"


def test_a_hundred_workspaces_are_read_in_well_under_a_second() -> None:
    text = a_file(*(f"workspace-{index}" for index in range(100)))
    start = time.perf_counter()
    assert len(read_manifest(text).workspaces) == 100
    assert time.perf_counter() - start < 1


@given(st.text("ab:-[]{}&*!|>'\"#%@,?\t\n .<1~", max_size=60))
@example("? a\n? b\n")
@example("a: |\n\tb")
@example("%TAG ! x\n---\n!y z")
@example("--- |\n%a")
def test_any_text_is_read_or_refused(text: str) -> None:
    for problem in examine_manifest(text).problems:
        assert 1 <= problem.line <= text.count("\n") + 1
        assert problem.message
