"""A refusal as an RFC 9457 problem: over HTTP, and in a `.mkreply` file alike."""

from typing import Any

from meterkit.errors import MeterkitError

TYPE_PREFIX = "urn:meterkit:problem:"


def to_document(error: MeterkitError) -> dict[str, Any]:
    """Write a refusal as a problem document."""
    document = {
        "type": f"{TYPE_PREFIX}{error.code}",
        "title": error.sentence,
        "status": error.status,
        "code": error.code,
    }
    return {**document, "detail": error.detail} if error.detail else document
