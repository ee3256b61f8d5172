# SPDX-License-Identifier: Apache-2.0
"""Archives in; the files that come out, or the reason nothing does."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from archives import a_gzip_of_zeros, a_hard_link, a_link, a_member, a_tar, a_zip
from kaito_ray.artifacts.archive import archive_kind, below, everything, unpack
from kaito_ray.artifacts.layer import Unpacked
from kaito_ray.artifacts.limits import Limits
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

LIMITS = Limits(bytes=256 * 1024 * 1024, entries=1000, seconds=10)
SECRET = b"root:x:0:0"


def unpacked(tmp_path: Path, *layers: bytes, folder: str = "", limits: Limits = LIMITS) -> dict[str, bytes]:
    """Unpack the layers over each other; names and contents of what is there then."""
    target = tmp_path / "out"
    target.mkdir()
    state = Unpacked(limits)
    for index, layer in enumerate(layers):
        path = tmp_path / f"layer{index}"
        path.write_bytes(layer)
        unpack(path, target, state, wanted=below(folder) if folder else everything)
    found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert set(found) == state.files
    return found


def refused(tmp_path: Path, *layers: bytes, folder: str = "", limits: Limits = LIMITS) -> tuple[str, str]:
    """The reason and the sentence; asserts that nothing was written outside the folder."""
    outside = tmp_path / "passwd"
    outside.write_bytes(SECRET)
    with pytest.raises(ArtifactRefused) as caught:
        unpacked(tmp_path, *layers, folder=folder, limits=limits)
    assert outside.read_bytes() == SECRET
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "passwd", *(f"layer{i}" for i in range(len(layers)))}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    return caught.value.reason, str(caught.value)


PLAIN = a_tar(("data/a.json", b"{}"), ("./data//b", b"bb"), ("other/c", b"c"))


@pytest.mark.parametrize(
    "archive",
    [PLAIN, gzip.compress(PLAIN), a_zip(("data/a.json", b"{}"), ("data/b", b"bb"), ("other/c", b"c"))],
    ids=["tar", "gzip", "zip"],
)
def test_only_what_is_wanted_comes_out(tmp_path: Path, archive: bytes) -> None:
    assert unpacked(tmp_path, archive, folder="data") == {"data/a.json": b"{}", "data/b": b"bb"}


def test_zstd(tmp_path: Path) -> None:
    zstd = pytest.importorskip("backports.zstd", reason="backports.zstd is not installed")
    # Two frames in a row, as tools that compress in parallel write them.
    half = len(PLAIN) // 2
    assert unpacked(tmp_path, zstd.compress(PLAIN[:half]) + zstd.compress(PLAIN[half:]), folder="other") == {
        "other/c": b"c"
    }


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_of_every_tar_dialect(tmp_path: Path, form: int) -> None:
    name = f"data/{'n' * 90}/{'m' * 90}"
    assert unpacked(tmp_path, a_tar((name, b"1"), format=form)) == {name: b"1"}


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("../passwd", b"x"), Reason.UNSAFE_ARCHIVE),
        (("data/../../passwd", b"x"), Reason.UNSAFE_ARCHIVE),
        (("/etc/passwd", b"x"), Reason.UNSAFE_ARCHIVE),
        (("data/..\\..\\passwd", b"x"), Reason.UNSAFE_ARCHIVE),
        (a_link("data/a", "../../passwd"), Reason.UNSAFE_ARCHIVE),
        (a_link("data/a", "/etc/passwd"), Reason.UNSAFE_ARCHIVE),
        (a_link("data", "../"), Reason.UNSAFE_ARCHIVE),
        (a_link("unwanted", "../passwd"), Reason.UNSAFE_ARCHIVE),
        (a_link("data/a", "missing"), Reason.UNSAFE_ARCHIVE),
        (a_link("data/a", "a"), Reason.UNSAFE_ARCHIVE),
        (a_hard_link("data/a", "../passwd"), Reason.UNSAFE_ARCHIVE),
        (a_hard_link("data/a", "/etc/passwd"), Reason.UNSAFE_ARCHIVE),
        (a_hard_link("data/a", "unwanted"), Reason.UNSAFE_ARCHIVE),
        (a_member("data/null", tarfile.CHRTYPE), Reason.UNSAFE_ARCHIVE),
        (a_member("dev/sda", tarfile.BLKTYPE), Reason.UNSAFE_ARCHIVE),
        (a_member("data/pipe", tarfile.FIFOTYPE), Reason.UNSAFE_ARCHIVE),
        (("/".join(["d"] * 100), b"x"), Reason.UNSAFE_ARCHIVE),
        (("n" * 300, b"x"), Reason.UNSAFE_ARCHIVE),
    ],
    ids=lambda value: ascii(value.name if isinstance(value, tarfile.TarInfo) else value[0])[:40],
)
def test_members_that_lead_out_or_are_no_files(
    tmp_path: Path, member: tuple[str, bytes] | tarfile.TarInfo, reason: Reason
) -> None:
    seen, sentence = refused(tmp_path, a_tar(("unwanted", b"y"), member), folder="data")
    assert seen == reason
    assert sentence


def test_nothing_is_written_through_a_link_of_the_archive(tmp_path: Path) -> None:
    hostile = a_tar(a_link("data/here", "there"), ("data/there/x", b"1"), ("data/here/passwd", b"pwned"))
    assert unpacked(tmp_path, hostile) == {"data/there/x": b"1", "data/here/passwd": b"pwned"}
    assert not (tmp_path / "out/data/here").is_symlink()


def test_links_inside_become_names_of_the_same_file(tmp_path: Path) -> None:
    archive = a_tar(
        a_link("data/first", "second"), a_link("data/second", "sub/real"), ("data/sub/real", b"weights"),
        a_hard_link("data/third", "data/sub/real"),
    )  # fmt: skip
    assert unpacked(tmp_path, archive) == dict.fromkeys(
        ("data/first", "data/second", "data/third", "data/sub/real"), b"weights"
    )


def test_setuid_and_owners_stay_behind(tmp_path: Path) -> None:
    entry = a_member("data/su", tarfile.REGTYPE, mode=0o6755)
    entry.uid = entry.gid = 12345
    unpacked(tmp_path, a_tar(entry))
    state = (tmp_path / "out/data/su").stat()
    assert (state.st_mode & 0o7000, state.st_uid) == (0, os.getuid())


def test_a_rewritten_file_does_not_change_its_other_name(tmp_path: Path) -> None:
    first = a_tar(("data/a", b"old"), a_hard_link("data/b", "data/a"))
    assert unpacked(tmp_path, first, a_tar(("data/a", b"new"))) == {"data/a": b"new", "data/b": b"old"}


LOWER = a_tar(("data/keep", b"1"), ("data/gone", b"1"), ("data/dir/x", b"1"), ("data/dir/sub/y", b"1"))


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        (a_tar(("data/.wh.gone", b"")), {"data/keep", "data/dir/x", "data/dir/sub/y"}),
        (a_tar(("data/.wh.dir", b"")), {"data/keep", "data/gone"}),
        (a_tar(("data/dir/new", b"2"), ("data/dir/.wh..wh..opq", b"")), {"data/keep", "data/gone", "data/dir/new"}),
        (
            a_tar(("data/gone", b"2"), ("data/.wh.gone", b"")),
            {"data/keep", "data/gone", "data/dir/x", "data/dir/sub/y"},
        ),
        (a_tar(("data/dir", b"now a file")), {"data/keep", "data/gone", "data/dir"}),
        (a_tar(("data/keep/below", b"2")), {"data/keep/below", "data/gone", "data/dir/x", "data/dir/sub/y"}),
    ],
    ids=["file", "folder", "opaque", "own file stays", "file over folder", "folder over file"],
)
def test_whiteouts_act_on_lower_layers(tmp_path: Path, upper: bytes, left: set[str]) -> None:
    assert set(unpacked(tmp_path, LOWER, upper, folder="data")) == left


def test_a_gzip_bomb_stops_early(tmp_path: Path) -> None:
    a_gzip_of_zeros(tmp_path / "layer0", 100 * 1024 * 1024)
    reason, sentence = refused(tmp_path, (tmp_path / "layer0").read_bytes())
    assert reason == Reason.TOO_LARGE
    assert "bomb" in sentence
    assert (tmp_path / "out/data/zeros").stat().st_size < 96 * 1024 * 1024


def test_a_zip_bomb_stops_early(tmp_path: Path) -> None:
    reason, sentence = refused(tmp_path, a_zip(("data/zeros", bytes(100 * 1024 * 1024))))
    assert reason == Reason.TOO_LARGE
    assert "bomb" in sentence


def test_bytes_are_capped_over_all_layers_wanted_or_not(tmp_path: Path) -> None:
    limits = Limits(bytes=3_000_000, entries=10, seconds=1)
    layer = a_tar(("unwanted", os.urandom(2_000_000)))
    reason, sentence = refused(tmp_path, layer, layer, folder="data", limits=limits)
    assert (reason, sentence) == (Reason.TOO_LARGE, "the archive unpacks to more than 2.9 MiB")


@pytest.mark.parametrize("make", [a_tar, a_zip])
def test_members_are_counted_wanted_or_not(tmp_path: Path, make: object) -> None:
    archive = make(*((f"f{index}", b"") for index in range(1001)))  # type: ignore[operator]
    assert refused(tmp_path, archive, folder="data")[0] == Reason.TOO_MANY_FILES


def test_a_zip_directory_that_hides_its_length_is_not_read(tmp_path: Path) -> None:
    raw = bytearray(a_zip(*((f"{index:05}", b"") for index in range(30_000))))
    raw[-12:-10] = raw[-14:-12] = (1).to_bytes(2, "little")
    assert refused(tmp_path, bytes(raw))[0] == Reason.TOO_MANY_FILES


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    entry = a_member("data/huge", tarfile.REGTYPE)
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}
    entry.size = 512
    archive = a_tar(entry)[:-10240] + b"0\n" + bytes(510) + bytes(10240)
    assert refused(tmp_path, archive)[0] in {Reason.UNSAFE_ARCHIVE, Reason.BROKEN_ARCHIVE}
    assert not (tmp_path / "out/data/huge").exists()


def test_a_header_that_fills_memory_is_refused(tmp_path: Path) -> None:
    entry = a_member("data/a", tarfile.REGTYPE)
    entry.pax_headers = {"comment": "x" * 5_000_000}
    assert refused(tmp_path, a_tar(entry)) == (Reason.TOO_LARGE, "the archive has a header of more than 1.0 MiB")


@pytest.mark.parametrize(
    "archive",
    [
        b"no archive at all",
        gzip.compress(os.urandom(10_000))[:-100],
        gzip.compress(a_tar(("data/a", os.urandom(100_000))))[:-5000],
        a_zip(("data/a", b"x" * 1000))[:-30],
        a_zip(("data/a", b"x" * 1000)).replace(b"PK\x01\x02", b"PK\x01\x03"),
    ],
    ids=["garbage", "truncated gzip", "truncated tar.gz", "truncated zip", "broken directory"],
)
def test_damage_is_said(tmp_path: Path, archive: bytes) -> None:
    reason, sentence = refused(tmp_path, archive)
    assert reason == Reason.BROKEN_ARCHIVE
    assert sentence.startswith("the archive is damaged: ")


@pytest.mark.parametrize("size", [-1, -1536, -(1 << 60)])
def test_a_negative_size_does_not_loop(tmp_path: Path, size: int) -> None:
    raw = bytearray(a_tar(("data/a", b"x" * 100)))
    raw[124:136] = size.to_bytes(12, "big", signed=True)  # the size field in base 256
    checksum = sum(raw[:148]) + 256 + sum(raw[156:512])
    raw[148:156] = b"%06o\0 " % checksum
    assert refused(tmp_path, bytes(raw))[0] == Reason.BROKEN_ARCHIVE


def test_encrypted_zip_members_are_refused(tmp_path: Path) -> None:
    raw = bytearray(a_zip(("data/a", b"x" * 50)))
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    assert refused(tmp_path, bytes(raw))[0] == Reason.UNSUPPORTED_FORMAT


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, a_zip(links=(("data/a", "../../passwd"),)))[0] == Reason.UNSAFE_ARCHIVE


def test_kinds(tmp_path: Path) -> None:
    cases = {
        PLAIN: "tar",
        a_tar(("a", b""), format=tarfile.GNU_FORMAT): "tar",
        gzip.compress(PLAIN): "tar+gzip",
        a_zip(("a", b"")): "zip",
        gzip.compress(b'{"text": "a line of data"}'): None,
        b'{"text": 1}': None,
        b"": None,
    }
    for index, (content, kind) in enumerate(cases.items()):
        path = tmp_path / str(index)
        path.write_bytes(content)
        assert archive_kind(path) == kind


def test_other_compressions_of_a_zip_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as zipped:
        zipped.writestr("a", b"x" * 1000)
    assert refused(tmp_path, buffer.getvalue())[0] == Reason.UNSUPPORTED_FORMAT
