# SPDX-License-Identifier: Apache-2.0
"""What a download is called, and how long a server asks to wait."""

import time
from email.utils import formatdate

import pytest

from kaito_ray.artifacts.transport import retry_after
from kaito_ray.artifacts.url import file_name


@pytest.mark.parametrize(
    ("url", "disposition", "name"),
    [
        ("https://h/data/train-00000-of-00001.parquet?download=true", None, "train-00000-of-00001.parquet"),
        ("https://h/a/b%20c.json", None, "b c.json"),
        ("https://h/get?file=train.jsonl&x=1", None, "train.jsonl"),
        ("https://h/get", None, "get"),
        ("https://h/", None, "download"),
        ("https://h/get", 'attachment; filename="data.csv"', "data.csv"),
        ("https://h/get", "attachment; filename*=UTF-8''na%C3%AFve.csv", "naïve.csv"),
        ("https://h/get", 'attachment; filename="../../etc/passwd"', "passwd"),
        ("https://h/get", 'attachment; filename="..\\\\..\\\\evil.txt"', "evil.txt"),
        ("https://h/x.json", "attachment; filename=", "x.json"),
        ("https://h/x.json", "nonsense;;;", "x.json"),
        ("https://h/%2e%2e%2f%2e%2e%2fetc%2fpasswd.txt", None, "passwd.txt"),
        ("https://h/.hidden", None, "hidden"),
        ("https://h/a%00b.txt", None, "ab.txt"),
        (f"https://h/{'n' * 400}.parquet", None, f"{'n' * 192}.parquet"),
    ],
)
def test_names(url: str, disposition: str | None, name: str) -> None:
    assert file_name(url, disposition) == name


def test_retry_after() -> None:
    assert retry_after("7") == 7
    assert 28 < retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert retry_after(formatdate(time.time() - 30, usegmt=True)) == 0
    assert [retry_after(value) for value in (None, "", "soon", "-3")] == [0, 0, 0, 0]
