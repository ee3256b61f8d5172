# SPDX-License-Identifier: Apache-2.0
"""Image references, Docker configurations and challenges in; hosts, logins and realms out."""

import base64
import json
from pathlib import Path

import pytest

from kaito_ray.artifacts.challenge import Challenge
from kaito_ray.artifacts.credential import logins_for, parse_config, read_logins
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.registry import may_speak_http
from kaito_ray.errors import ArtifactRefused

DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "host", "repository", "wanted"),
    [
        ("ubuntu", "docker.io", "library/ubuntu", "latest"),
        ("team/adapter:1.0", "docker.io", "team/adapter", "1.0"),
        ("index.docker.io/library/x", "docker.io", "library/x", "latest"),
        ("localhost/x:1", "localhost", "x", "1"),
        ("localhost:5000/x", "localhost:5000", "x", "latest"),
        ("127.0.0.1:5000/a/b/c:v1.2-3_4", "127.0.0.1:5000", "a/b/c", "v1.2-3_4"),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
        (f"me.azurecr.io/a@{DIGEST}", "me.azurecr.io", "a", DIGEST),
        (f"docker://me.azurecr.io/a:1@{DIGEST}", "me.azurecr.io", "a", DIGEST),
    ],
)
def test_references(text: str, host: str, repository: str, wanted: str) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.repository, reference.wanted) == (host, repository, wanted)


@pytest.mark.parametrize(
    "text",
    ["", "/a", "reg.io/", "reg.io/UPPER:1", "reg.io/a:", "reg.io/a@sha256:12", "reg.io/../a", "reg .io/a", "a" * 600],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ArtifactRefused, match="is no image reference"):
        Reference.parse(text)


def a_config(**auths: dict[str, str]) -> str:
    return json.dumps({"auths": auths})


AUTH = base64.b64encode(b"me:se:cret").decode()


@pytest.mark.parametrize(
    ("key", "host", "found"),
    [
        ("reg.example:5000", "reg.example:5000", True),
        ("https://reg.example:5000/v2/", "reg.example:5000", True),
        ("REG.example", "reg.example", True),
        ("reg.example", "reg.example:5000", False),
        ("reg.example", "evil.reg.example", False),
        ("reg.example/team", "reg.example", True),
        ("reg.example/tea", "reg.example", False),
        ("https://index.docker.io/v1/", "docker.io", True),
    ],
)
def test_logins_go_to_their_registry_only(key: str, host: str, found: bool) -> None:
    logins = logins_for(host, "team/adapter", [("pull", parse_config(a_config(**{key: {"auth": AUTH}}), "pull"))])
    assert [(login.user, login.password) for login in logins] == ([("me", "se:cret")] if found else [])


def test_the_closest_login_comes_first_and_secrets_are_not_shown() -> None:
    config = parse_config(
        a_config(
            **{
                "reg.example": {"username": "far", "password": "hunter2"},
                "reg.example/team/adapter": {"username": "near", "password": "hunter2"},
                "other.example": {"auth": AUTH},
            }
        ),
        "pull",
    )
    logins = logins_for("reg.example", "team/adapter", [("pull", config)])
    assert [login.user for login in logins] == ["near", "far"]
    assert "hunter2" not in repr(logins)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"auths": {"reg": "x"}}', '{"auths": 3}'])
def test_what_is_no_docker_configuration(text: str) -> None:
    with pytest.raises(ArtifactRefused, match="pull secret mine is no Docker configuration"):
        parse_config(text, "mine")


def test_a_broken_auth_is_refused_without_showing_it() -> None:
    with pytest.raises(ArtifactRefused, match="`auth` that is not base64") as caught:
        logins_for("reg", "a", [("mine", parse_config(a_config(reg={"auth": "s3cr3t!"}), "mine"))])
    assert "s3cr3t" not in str(caught.value)


def test_named_secrets_in_their_order(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.json").write_text(a_config(**{name: {"auth": AUTH}}))
    assert [name for name, _ in read_logins(tmp_path, ["two", "absent", "one"])] == ["two", "one"]
    assert len(read_logins(tmp_path)) == 3


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="x"'], Challenge("Basic")),
        (
            ['Bearer realm="https://auth.io/token",service="reg",scope="repository:a/b:pull,push"'],
            Challenge("Bearer", "https://auth.io/token", "reg", "repository:a/b:pull,push"),
        ),
        (["Negotiate", 'bearer Realm="https://a/t" , service=reg'], Challenge("Bearer", "https://a/t", "reg", "")),
        (["Bearer"], None),
        ([], None),
    ],
)
def test_challenges(headers: list[str], expected: Challenge | None) -> None:
    assert Challenge.parse(headers) == expected


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("127.0.0.1", (), True),
        ("[::1]", (), True),
        ("localhost", (), True),
        ("registry.example", (), False),
        ("registry.example", ("registry.example",), True),
        ("10.0.0.5", (), False),
        ("10.0.0.5", ("10.0.0.0/8",), True),
        ("169.254.169.254", ("169.254.0.0/16",), False),
    ],
)
def test_who_may_go_without_tls(host: str, allowed: tuple[str, ...], expected: bool) -> None:
    assert may_speak_http(host, allowed) is expected
