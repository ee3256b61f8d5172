# SPDX-License-Identifier: Apache-2.0
"""Why an artefact was refused or is not here yet: the reasons that reach conditions, events and `GET /adapters`."""

from enum import StrEnum


class Reason(StrEnum):
    """One word per cause; the sentence beside it names the value seen and the value allowed."""

    # Where it is.
    URL_REFUSED = "UrlRefused"
    HOST_NOT_FOUND = "HostNotFound"
    CONNECTION_FAILED = "ConnectionFailed"
    TLS_FAILED = "TlsFailed"
    CERTIFICATE_REFUSED = "CertificateRefused"
    TOO_MANY_REDIRECTS = "TooManyRedirects"
    # What its server said.
    UNAUTHORIZED = "Unauthorized"
    FORBIDDEN = "Forbidden"
    NOT_FOUND = "NotFound"
    RATE_LIMITED = "RateLimited"
    SERVER_ERROR = "ServerError"
    UNEXPECTED_ANSWER = "UnexpectedAnswer"
    TIMEOUT = "Timeout"
    GATED = "Gated"
    REVISION_NOT_FOUND = "RevisionNotFound"
    # What came.
    TRUNCATED = "Truncated"
    CHANGED = "ChangedWhileFetching"
    DIGEST_MISMATCH = "DigestMismatch"
    TOO_LARGE = "TooLarge"
    TOO_MANY_FILES = "TooManyFiles"
    UNSUPPORTED_FORMAT = "UnsupportedFormat"
    BROKEN_ARCHIVE = "BrokenArchive"
    UNSAFE_ARCHIVE = "UnsafeArchive"
    PATH_NOT_FOUND = "PathNotFound"
    UNSAFE_PATH = "UnsafePath"
    INVALID_SOURCE = "InvalidSource"
    NOT_TUNED = "NotTunedYet"
    # Where it goes.
    DISK_TOO_SMALL = "DiskTooSmall"
    # What an adapter is.
    NO_ADAPTER = "NoAdapterFound"
    PICKLE = "PickleRefused"
    INVALID_CONFIG = "InvalidAdapterConfig"
    CORRUPT_WEIGHTS = "CorruptWeights"
    RANK_TOO_HIGH = "RankTooHigh"
    UNSUPPORTED_FEATURE = "UnsupportedAdapterFeature"
    WRONG_MODULES = "UnknownTargetModules"
    WRONG_BASE = "WrongBaseModel"
    CHANGES_NOTHING = "ChangesNothing"
    INVALID_STRENGTH = "InvalidStrength"
    # What a model is.
    NO_MODEL = "NoModelFound"
    INVALID_MODEL_CONFIG = "InvalidModelConfig"
    SHARD_MISSING = "ShardMissing"
    SHARD_MISMATCH = "ShardMismatch"
    WRONG_MODEL = "WrongModel"
    LICENSE_REFUSED = "LicenseRefused"
