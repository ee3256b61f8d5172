# SPDX-License-Identifier: Apache-2.0
"""Content negotiation: whole objects, their metadata alone, or a table for people."""

from dataclasses import dataclass

from cluster.failure import Failure


@dataclass(frozen=True, slots=True)
class Form:
    """How objects are to be written: `kind` is empty, `Table`, `PartialObjectMetadata` or a discovery list."""

    kind: str = ""
    version: str = ""
    content_type: str = "application/json"


def accepted_form(accept: str) -> Form:
    """The first form of an Accept header that the server can write. Raises Failure (406)."""
    if not accept:
        return Form()
    for part in accept.split(","):
        media, *parameters = [one.strip() for one in part.split(";")]
        given = dict(one.split("=", 1) for one in parameters if "=" in one)
        if media in ("*/*", "application/*"):
            return Form()
        if media != "application/json":
            continue
        kind = given.get("as", "")
        if not kind:
            return Form()
        if kind in ("Table", "PartialObjectMetadata", "PartialObjectMetadataList", "APIGroupDiscoveryList"):
            if kind == "APIGroupDiscoveryList" and given.get("v") not in ("v2", "v2beta1"):
                continue
            return Form(kind.removesuffix("List") if kind.startswith("Partial") else kind, given.get("v", "v1"))
    raise Failure(
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml",
    )
