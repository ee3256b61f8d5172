# SPDX-License-Identifier: Apache-2.0
"""Training data in every format and state in; rows to train on, or file, line and column of what is wrong, out."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet

from kaito_ray.artifacts.dataset import Report, read_dataset
from kaito_ray.artifacts.dataset_format import Wish
from kaito_ray.artifacts.dataset_tokens import RoughCounter
from kaito_ray.artifacts.limits import Limits

LIMITS = Limits(bytes=256 * 1024 * 1024, entries=1000, seconds=60)
TURNS = [{"role": "user", "content": "What is a pod?"}, {"role": "assistant", "content": "A barrel."}]
CHAT = {"messages": TURNS}
ROW = {"prompt": TURNS[:1], "completion": TURNS[1:]}


class ExactCounter(RoughCounter):
    """A token is four characters, and that is no guess."""

    exact = True


def read(
    folder: Path, *, max_length: int = 512, counter: RoughCounter | None = None, **options: Any
) -> tuple[Report, list[dict[str, Any]]]:
    """The report, and the rows of the clean file; none when it was not written."""
    work, target = folder.parent / "work", folder.parent / "clean.parquet"
    work.mkdir()
    wish = Wish(**{key: options.pop(key) for key in list(options) if key.endswith("column") or key == "format"})
    counter = counter or RoughCounter()
    report = read_dataset(
        folder, work, wish=wish, limits=LIMITS, counter=counter, max_length=max_length, target=target, **options
    )
    return report, parquet.read_table(target).to_pylist() if target.exists() else []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for data."""
    made = tmp_path / "data"
    made.mkdir()
    return made


def problems(report: Report) -> list[str]:
    return [str(finding) for finding in report.errors]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def a_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def an_arrow(rows: list[dict[str, Any]], *, stream: bool) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with (ipc.new_stream if stream else ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def a_zip(name: str, content: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as packed:
        packed.writestr(name, content)
    return sink.getvalue()


def a_tar(name: str, content: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as packed:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        packed.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


JSONL = lines(CHAT).encode()
FILES: dict[str, bytes] = {
    "chats.jsonl": JSONL,
    "chats.ndjson": JSONL,
    "lines.json": JSONL,
    "array.json": json.dumps([CHAT], indent=2).encode(),
    "one.json": json.dumps(CHAT, indent=2).encode(),
    "wrapped.json": json.dumps({"data": [CHAT]}).encode(),
    "wrapped-in-lines.json": json.dumps({"version": 1, "data": [CHAT]}, indent=1).encode(),
    "marked.jsonl": b"\xef\xbb\xbf" + JSONL,
    "windows.jsonl": JSONL.replace(b"\n", b"\r\n"),
    "blank.jsonl": b"\n" + JSONL + b"\n",
    "chats.jsonl.gz": gzip.compress(JSONL),
    "really-gzip.json": gzip.compress(JSONL),
    "really-zip.json": a_zip("inner/chats.jsonl", JSONL),
    "chats.jsonl.bz2": bz2.compress(JSONL),
    "chats.json.xz": lzma.compress(JSONL),
    "chats.parquet": a_parquet([CHAT]),
    "chats.arrow": an_arrow([CHAT], stream=False),
    "stream.arrow": an_arrow([CHAT], stream=True),
    "download": JSONL,
    "packed.zip": a_zip("inner/chats.jsonl", JSONL),
    "packed.tar.gz": a_tar("inner/chats.jsonl", JSONL),
    "pairs.csv": b"question,answer\nWhat is a pod?,A barrel.\n",
    "pairs.tsv": b"question\tanswer\nWhat is a pod?\tA barrel.\n",
    "semicolons.csv": b"prompt;completion\nWhat is a pod?;A barrel.\n",
    "messages.csv": b"messages\n" + ('"' + json.dumps(TURNS).replace('"', '""') + '"\n').encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_row(folder: Path, name: str) -> None:
    (folder / name).write_bytes(FILES[name])
    report, rows = read(folder)
    assert problems(report) == []
    assert rows == [ROW]
    assert report.rows == 1


SYSTEM = {"role": "system", "content": "Be brief."}
COLUMNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "messages": (CHAT, ROW),
    "a system message": ({"messages": [SYSTEM, *TURNS]}, {"prompt": [SYSTEM, *TURNS[:1]], "completion": TURNS[1:]}),
    "several turns": ({"messages": [*TURNS, *TURNS]}, {"prompt": TURNS[:1], "completion": [*TURNS[1:], *TURNS]}),
    "parts of text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is a pod?"}]}, TURNS[1]]},
        ROW,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "What is a pod?"}, {"from": "gpt", "value": "A barrel."}]},
        ROW,
    ),
    "sharegpt with roles": ({"conversations": TURNS}, ROW),
    "prompt and completion": ({"prompt": "What is a pod?", "completion": "A barrel."}, ROW),
    "prompt and completion as messages": (ROW, ROW),
    "upper case": ({"Prompt": "What is a pod?", "Completion": "A barrel."}, ROW),
    "question and answer": ({"id": 7, "question": "What is a pod?", "answer": "A barrel."}, ROW),
    "instruction": ({"instruction": "What is a pod?", "input": "", "output": "A barrel."}, ROW),
    "instruction without input": ({"instruction": "What is a pod?", "output": "A barrel."}, ROW),
    "instruction with input": (
        {"instruction": "Explain", "input": "a pod", "output": "A barrel."},
        {"prompt": [{"role": "user", "content": "Explain\n\na pod"}], "completion": TURNS[1:]},
    ),
    "dolly": (
        {"instruction": "What is a pod?", "context": None, "response": "A barrel.", "category": "open_qa"},
        ROW,
    ),
    "preference with a prompt": ({"prompt": "What is a pod?", "chosen": "A barrel.", "rejected": "No."}, ROW),
    "preference of conversations": ({"chosen": TURNS, "rejected": TURNS[:1]}, ROW),
    "preference with both": ({"prompt": "What is a pod?", "chosen": TURNS, "rejected": TURNS}, ROW),
    "text": ({"text": "A pod is a barrel."}, {"text": "A pod is a barrel."}),
    "messages before text": (CHAT | {"text": "unused"}, ROW),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_formats_are_found_out(folder: Path, case: str) -> None:
    given, expected = COLUMNS[case]
    (folder / "rows.jsonl").write_text(lines(given))
    report, rows = read(folder)
    assert problems(report) == []
    assert rows == [expected]


@pytest.mark.parametrize(
    ("wish", "given"),
    [
        ({"messages_column": "talk"}, {"talk": TURNS, "text": "x"}),
        ({"context_column": "q", "response_column": "a"}, {"q": "What is a pod?", "a": "A barrel.", "text": "x"}),
        ({"format": "prompt-completion"}, {"prompt": "What is a pod?", "completion": "A barrel.", "messages": []}),
    ],
)
def test_the_user_may_name_columns_and_format(folder: Path, wish: dict[str, Any], given: dict[str, Any]) -> None:
    (folder / "rows.jsonl").write_text(lines(given))
    _, rows = read(folder, **wish)
    assert rows == [ROW]


def test_a_response_alone_is_text(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(lines({"body": "A pod is a barrel."}))
    assert read(folder, response_column="body")[1] == [{"text": "A pod is a barrel."}]


def chat(*turns: Any) -> str:
    return lines({"messages": list(turns)})


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("a.jsonl", "", "a.jsonl:1 is empty"),
    "no rows": ("a.csv", "prompt,completion\n", "a.csv:1 has no rows"),
    "an empty list": ("a.json", "[]", "a.json:1 has no rows"),
    "bad JSON in a line": (
        "a.jsonl",
        lines(CHAT) + '{"messages": [}\n' + lines(CHAT),
        "a.jsonl:2 column 15: is no JSON",
    ),
    "bad JSON in a document": ("a.json", '[\n {"text": "a"},\n {"text": }\n]', "a.json:3 column 11: is no JSON"),
    "a list that does not end": ("a.json", '[\n {"text": "a"}\n', "a.json:3 must have a comma or ]"),
    "a line that is no object": ("a.jsonl", lines(CHAT) + "[1]\n", "a.jsonl:2 must be an object with named columns"),
    "unknown columns": ("a.jsonl", lines({"foo": 1}), "a.jsonl:1 has the columns foo, which are not those of"),
    "a wrong role": (
        "a.jsonl",
        chat({"role": "usr", "content": "x"}, TURNS[1]),
        'a.jsonl:1 messages: message 1 must have the role system, user or assistant, got "usr"',
    ),
    "a tool": ("a.jsonl", chat(TURNS[0], {"role": "tool", "content": "x"}), 'message 2 has the role "tool"'),
    "a late system message": ("a.jsonl", chat(*TURNS, SYSTEM), "message 3 has the role system, which only the first"),
    "no answer": ("a.jsonl", chat(TURNS[0]), "has no message of role assistant"),
    "an answer first": ("a.jsonl", chat(TURNS[1]), "begins with role assistant"),
    "an empty message": ("a.jsonl", chat({"role": "user", "content": " "}, TURNS[1]), "message 1 is empty"),
    "an image": ("a.jsonl", chat({"role": "user", "content": [{"type": "image"}]}, TURNS[1]), "a part that is no text"),
    "a number as content": ("a.jsonl", chat({"role": "user", "content": 3}, TURNS[1]), "text as its content, got 3"),
    "no list": ("a.jsonl", lines({"messages": "hello"}), 'messages: must be a list of messages, got "hello"'),
    "mixed columns": ("a.jsonl", lines(CHAT, {"text": "x"}), "a.jsonl:2 messages: is missing"),
    "an empty answer": ("a.jsonl", lines({"prompt": "x", "completion": ""}), "a.jsonl:1 completion: is empty"),
    "a number as text": ("a.jsonl", lines({"text": 3}), "a.jsonl:1 text: must be text, got 3"),
    "cells that overflow": ("a.csv", "prompt,completion\na,b\nc,d,e\n", "a.csv:3 has 3 cells, the header names 2"),
    "a column twice": ("a.csv", "prompt,prompt\na,b\n", "a.csv:1 has two columns called 'prompt'"),
    "latin-1": ("a.jsonl", lines(CHAT).encode() + b'{"text": "\xe9"}\n', "a.jsonl:2 column 11: byte 0xe9 is not UTF-8"),
    "utf-16": ("a.csv", "prompt,completion\na,b\n".encode("utf-16"), "a.csv:1 is UTF-16"),
    "a cut parquet": ("a.parquet", a_parquet([CHAT])[:-20], "a.parquet:1 is no readable parquet file"),
    "a cut gzip": ("a.jsonl.gz", gzip.compress(JSONL * 50)[:-30], "a.jsonl.gz:1 is damaged"),
    "packed parquet": ("a.parquet.gz", gzip.compress(a_parquet([CHAT])), "is parquet inside of another packing"),
    "a picture": ("a.json", b"\x89PNG\r\n\x1a\n\x00\x00", "a.json:1 is neither text nor a kind of file"),
    "something else": ("a.exe", "MZ", "holds no parquet, json, jsonl, csv, tsv, arrow or txt file, only a.exe"),
}


@pytest.mark.parametrize("case", BAD)
def test_problems_name_file_line_and_column(folder: Path, case: str) -> None:
    name, content, expected = BAD[case]
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    report, rows = read(folder)
    assert any(expected in problem for problem in problems(report)), problems(report)
    assert rows == []


def test_all_problems_are_told_at_once_and_the_list_has_an_end(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": 3}\n' * 50)
    found = problems(read(folder)[0])
    assert found[0].startswith("a.jsonl:1 ")
    assert found[19].startswith("a.jsonl:20 ")
    assert "30 more problems" in found[20]
    assert len(found) == 21


def test_a_bomb_ends_at_its_cap(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress((b'{"text": "' + b"a" * 2_000_000 + b'"}\n') * 40, 9))
    [problem, *_] = problems(read(folder)[0])
    assert "unpacks to more than 200 times its size" in problem


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text(lines(CHAT))
    (folder / "a.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert "holds no" in problems(read(folder)[0])[0]
    report = read_dataset(
        folder, tmp_path, wish=Wish(), limits=LIMITS, counter=RoughCounter(), max_length=9, path="../secret.jsonl"
    )
    assert "there is no such file" in problems(report)[0]


def test_files_for_testing_are_left_out(folder: Path) -> None:
    (folder / "train-00000.jsonl").write_text(lines(CHAT))
    (folder / "test-00000.jsonl").write_text(lines(CHAT, CHAT))
    (folder / "README.md").write_text("# about")
    (folder / "dataset_info.json").write_text("{}")
    report, rows = read(folder)
    assert len(rows) == 1
    assert any("is not trained on" in str(finding) for finding in report.findings)


def test_several_files_may_have_different_formats(folder: Path) -> None:
    (folder / "a.jsonl").write_text(lines(CHAT))
    (folder / "b.csv").write_text("prompt,completion\nWhat is a node?,A ship.\n")
    report, rows = read(folder)
    assert [row["completion"][0]["content"] for row in rows] == ["A barrel.", "A ship."]
    assert len(report.layouts) == 2


def test_texts_and_conversations_do_not_mix(folder: Path) -> None:
    (folder / "a.jsonl").write_text(lines(CHAT))
    (folder / "b.txt").write_text("A line of text.\n")
    assert "cannot be trained on together" in problems(read(folder)[0])[0]


def test_a_part_of_the_data_can_be_chosen(folder: Path) -> None:
    (folder / "a.jsonl").write_text(lines(CHAT))
    (folder / "b.csv").write_text("prompt,completion\nWhat is a node?,A ship.\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "c.jsonl").write_text(lines(CHAT, CHAT))
    assert read(folder, extension="csv")[0].rows == 1
    assert read_part(folder, "sub").rows == 2


def read_part(folder: Path, path: str) -> Report:
    work = folder.parent / "part"
    work.mkdir()
    return read_dataset(folder, work, wish=Wish(), limits=LIMITS, counter=RoughCounter(), max_length=512, path=path)


def test_lengths_duplicates_and_what_is_cut_off(folder: Path) -> None:
    rows = [{"text": "a" * 4 * length} for length in (5, 10, 10, 20, 300)]
    (folder / "a.jsonl").write_text(lines(*rows))
    report, _ = read(folder, max_length=100)
    lengths = report.lengths
    assert lengths is not None
    assert (lengths.shortest, lengths.median, lengths.longest, lengths.cut) == (5, 10, 300, 1)
    assert lengths.total == 5 + 10 + 10 + 20 + 100
    assert dict(lengths.histogram) == {8: 1, 16: 2, 32: 1, 512: 1}
    assert lengths.bands() == "tokens a row: up to 8 in 1, up to 16 in 2, up to 32 in 1, up to 512 in 1"
    assert report.duplicates == 1
    warnings = [str(finding) for finding in report.findings]
    assert any("a.jsonl:3" in warning and "repeats an earlier row" in warning for warning in warnings)
    assert any("has 5 rows" in warning for warning in warnings)


TOO_LONG = "every row is longer than max_length, 100 tokens (the shortest has 1,000)"


def test_rows_that_are_all_too_long_are_an_error(folder: Path) -> None:
    (folder / "a.jsonl").write_text(lines({"text": "a" * 4000}, {"text": "b" * 4000}))
    report, rows = read(folder, max_length=100, counter=ExactCounter())
    assert TOO_LONG in problems(report)[0]
    assert rows == []


def test_rows_that_may_all_be_too_long_are_a_warning(folder: Path) -> None:
    (folder / "a.jsonl").write_text(lines({"text": "a" * 4000}, {"text": "b" * 4000}))
    report, rows = read(folder, max_length=100, counter=RoughCounter())
    assert problems(report) == []
    assert any(TOO_LONG in str(finding) for finding in report.findings)
    assert len(rows) == 2


def test_the_same_rows_have_the_same_digest_in_any_format(tmp_path: Path) -> None:
    digests = set()
    for name in ("array.json", "chats.parquet", "pairs.csv"):
        folder = tmp_path / name.partition(".")[0] / "data"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(FILES[name])
        digests.add(read(folder)[0].digest)
    assert len(digests) == 1


QUESTION = TURNS[:1]
PAIR = {"prompt": QUESTION, "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "No."}]}
WORSE = [*QUESTION, *PAIR["rejected"]]
MORE = [*TURNS, {"role": "user", "content": "And a node?"}]
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "texts": ({"prompt": "What is a pod?", "chosen": "A barrel.", "rejected": "No."}, PAIR),
    "answers as messages": (PAIR, PAIR),
    "conversations": ({"chosen": TURNS, "rejected": WORSE}, PAIR),
    "both": ({"prompt": "What is a pod?", "chosen": TURNS, "rejected": WORSE}, PAIR),
    "text and messages": ({"question": "What is a pod?", "chosen": "A barrel.", "rejected": PAIR["rejected"]}, PAIR),
    "messages besides": ({"messages": TURNS, "prompt": "What is a pod?", "chosen": TURNS, "rejected": WORSE}, PAIR),
    "JSON in a cell": ({"chosen": json.dumps(TURNS), "rejected": json.dumps(WORSE)}, PAIR),
    "they part later": (
        {"chosen": [*MORE, TURNS[1]], "rejected": [*MORE, PAIR["rejected"][0]]},
        {"prompt": MORE, "chosen": TURNS[1:], "rejected": PAIR["rejected"]},
    ),
    "one goes on": (
        {"chosen": TURNS, "rejected": [*MORE, *PAIR["rejected"]]},
        {"prompt": QUESTION, "chosen": TURNS[1:], "rejected": [*MORE[1:], *PAIR["rejected"]]},
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs_part_where_they_differ(folder: Path, case: str) -> None:
    given, expected = PAIRS[case]
    (folder / "rows.jsonl").write_text(lines(given))
    report, rows = read(folder, pairs=True)
    assert problems(report) == []
    assert rows == [expected]
    assert report.layouts[0].startswith("preference (")


NO_PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "chats": (CHAT, "a.jsonl:1 is in the format messages (messages), and method dpo learns from pairs: the columns"),
    "no format": ({"foo": 1}, "a.jsonl:1 has the columns foo, and method dpo learns from pairs: the columns chosen"),
    "one side": ({"prompt": "a", "chosen": "b"}, "a.jsonl:1 has the columns prompt, chosen, and method dpo learns"),
    "no answer": ({"chosen": TURNS, "rejected": QUESTION}, "a.jsonl:1 rejected: has no message of role assistant"),
    "no question": ({"chosen": TURNS[1:], "rejected": TURNS[1:]}, "chosen: begins with role assistant; a question"),
    "texts alone": ({"chosen": "a", "rejected": "b"}, "chosen: must be a list of messages where there is no column"),
    "an empty side": ({"prompt": "a", "chosen": "b", "rejected": " "}, "a.jsonl:1 rejected: is empty"),
    "a number": ({"prompt": "a", "chosen": "b", "rejected": 3}, "a.jsonl:1 rejected: must be text, got 3"),
    "nothing": ({"prompt": "a", "chosen": "b", "rejected": None}, "a.jsonl:1 rejected: is missing; the data set is in"),
    "a wrong role": ({"chosen": [{"role": "usr", "content": "x"}], "rejected": TURNS}, "chosen: message 1 must have"),
    "two questions": (
        {"chosen": TURNS, "rejected": [{"role": "user", "content": "?"}, TURNS[1]]},
        "a.jsonl:1 rejected: must answer what chosen answers, and differs from it at message 1 already",
    ),
    "another second question": (
        {"chosen": [*MORE, TURNS[1]], "rejected": [*TURNS, *TURNS]},
        "a.jsonl:1 rejected: must answer what chosen answers, and differs from it at message 3 already",
    ),
    "a tie": (
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        "a.jsonl:1 prefers nothing, since chosen and rejected are the same; as in every row",
    ),
}


@pytest.mark.parametrize("case", NO_PAIRS)
def test_what_is_no_pair_is_named(folder: Path, case: str) -> None:
    given, expected = NO_PAIRS[case]
    (folder / "a.jsonl").write_text(lines(given))
    report, rows = read(folder, pairs=True)
    assert len(problems(report)) == 1
    assert expected in problems(report)[0]
    assert rows == []


def test_pairs_that_prefer_nothing_are_left_out(folder: Path) -> None:
    tie = {"chosen": TURNS, "rejected": TURNS}
    (folder / "a.jsonl").write_text(lines(PAIRS["conversations"][0], tie, tie))
    report, rows = read(folder, pairs=True)
    assert rows == [PAIR]
    assert report.rows == 1
    [warning] = [str(finding) for finding in report.findings if "prefers nothing" in str(finding)]
    assert warning.startswith("a.jsonl:2 warning: ")
    assert warning.endswith("left out are 2 rows like this")


def test_pairs_are_as_long_as_their_longer_side_and_cost_both(folder: Path) -> None:
    rows = [
        {"prompt": "a" * 40, "chosen": "b" * 40, "rejected": "c" * 400},
        {"prompt": "a" * 40, "chosen": "b" * 40, "rejected": "c" * 20},
        {"prompt": "a" * 40, "chosen": "b" * 40, "rejected": "d" * 20},
        {"prompt": "a" * 40, "chosen": "b" * 40, "rejected": "d" * 20},
        {"prompt": "a" * 400, "chosen": "b" * 4, "rejected": "d" * 20},
    ]
    (folder / "a.jsonl").write_text(lines(*rows))
    report, _ = read(folder, max_length=100, pairs=True)
    lengths = report.lengths
    assert lengths is not None
    assert (lengths.shortest, lengths.longest, lengths.cut, lengths.lost) == (20, 110, 2, 1)
    assert lengths.total == (20 + 100) + 3 * (20 + 15) + (100 + 100)
    assert "the longer sides of rows have 20 to 110" in " ".join(report.summary())
    assert report.duplicates == 1
    assert report.samples[1] == f"user: {'a' * 40} | chosen: {'b' * 40} | rejected: {'c' * 20}"


def test_pairs_that_end_with_a_question_are_said(folder: Path) -> None:
    (folder / "a.jsonl").write_text(lines({"chosen": TURNS, "rejected": [*WORSE, QUESTION[0]]}))
    report, _ = read(folder, pairs=True)
    assert any("ends with a message that is not the assistant's" in str(finding) for finding in report.findings)
