# SPDX-License-Identifier: Apache-2.0
"""The errors of kaito-ray, all with a reason for machines and a sentence for people.

KaitoRayError
├── UserError            somebody must edit something; trying again changes nothing
│   ├── InvalidManifest      a file or object that cannot be read as what it claims to be
│   ├── UnknownPreset        no model of that name
│   ├── UnknownSize          no GPU size of that name
│   ├── DoesNotFit           the model cannot run on that size, or only beyond a cap
│   ├── HubRefused           the model hub said no: missing, gated, no weights, unsupported
│   ├── CannotRun            this machine cannot run it: port taken, package missing, too small
│   ├── ObjectRefused        the API server does not take an object: schema, permission, quota
│   ├── NameTaken            an object of a name we need belongs to somebody else
│   └── ArtifactRefused      data, an adapter or model files may not be fetched, or are not what they should be
│       └── AdapterRefused       an adapter that the base model cannot use
└── NotReadyYet          the world is not ready; try again after `delay_s`
    ├── ClusterUnavailable   the API server is down, slow or throttling
    ├── LeaseLost            another operator leads now; this one must not write
    └── ArtifactUnavailable  the server or registry that has the files is down, slow or throttling

Anything else that is raised is a bug and carries its traceback.
`reason` is CamelCase and ends up as the reason of a condition or an event; `str(error)` is its message.
"""

from dataclasses import dataclass


class KaitoRayError(Exception):
    """Base of every expected error."""

    reason = "Error"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class UserError(KaitoRayError):
    """Somebody must edit something; retrying changes nothing."""

    reason = "InvalidInput"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a manifest.

    `path` is the way to the field, such as ("inference", "adapters", 0, "strength"); `message` is a sentence
    with the value seen and the values allowed.
    """

    path: tuple[str | int, ...]
    message: str

    @property
    def field(self) -> str:
        """The path as people write it: `inference.adapters[0].strength`."""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}"
        return text.removeprefix(".")

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.path else self.message


class InvalidManifest(UserError):
    """A document with one or more problems, all of them listed."""

    reason = "InvalidManifest"

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


class UnknownPreset(UserError):
    """No model of that name."""

    reason = "UnknownPreset"


class UnknownSize(UserError):
    """No GPU size of that name."""

    reason = "UnknownInstanceType"


class DoesNotFit(UserError):
    """The model cannot run on that size, or only beyond a cap on nodes or dollars."""

    reason = "DoesNotFit"


class HubRefused(UserError):
    """The model hub said no for good: missing, gated, no weights, unsupported architecture."""

    reason = "ModelUnavailable"


class CannotRun(UserError):
    """This machine cannot run it: a port is taken, a package is missing, memory is too small."""

    reason = "CannotRun"


class ObjectRefused(UserError):
    """The API server does not take an object: its schema, a permission, a quota or a webhook is against it."""

    reason = "ObjectRefused"


class NameTaken(UserError):
    """An object of a name we need belongs to somebody else, and is left alone."""

    reason = "NameTaken"


class ArtifactRefused(UserError):
    """Data, an adapter or model files may not be fetched, or are not what they should be."""

    reason = "ArtifactRefused"


class AdapterRefused(ArtifactRefused):
    """An adapter that the base model cannot use; the message has the value seen and the value allowed."""

    reason = "AdapterRefused"


class NotReadyYet(KaitoRayError):
    """The world is not ready; try again after `delay_s` seconds."""

    reason = "NotReady"

    def __init__(self, message: str, *, reason: str | None = None, delay_s: float = 10.0) -> None:
        super().__init__(message, reason=reason)
        self.delay_s = delay_s


class ClusterUnavailable(NotReadyYet):
    """The API server is down, slow or throttling."""

    reason = "ClusterUnavailable"


class LeaseLost(NotReadyYet):
    """Another operator leads now; this one must not write."""

    reason = "LeaseLost"


class ArtifactUnavailable(NotReadyYet):
    """The server or registry that has the files is down, slow or throttling.

    `retry_after_s` is the wait that the server itself asked for; 0 when it did not say.
    """

    reason = "ArtifactUnavailable"

    def __init__(self, message: str, *, reason: str | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(message, reason=reason, delay_s=max(10.0, retry_after_s))
        self.retry_after_s = retry_after_s
