"""Making an activation request: the code proves itself for this device, and is not in it."""

from __future__ import annotations

import platform

from device_sdk.vault import DeviceKeys
from meterkit import __version__, envelopes, signing
from meterkit.activation import ActivationRequest, proof, read_code
from meterkit.canonical import to_base64url
from meterkit.exchange import READS
from meterkit.positions import Position


def make(
    code: str,
    *,
    keys: DeviceKeys,
    product: str,
    position: Position,
    license_hint: str | None,
    made_at: int,
    nonce: bytes,
) -> str:
    """Sign a request for the license that a code stands for; raises `malformed_code`."""
    known = read_code(code)
    request = ActivationRequest(
        product=product,
        code_id=known.id,
        proof=proof(known.secret, keys.device),
        sign_key=keys.sign.verify_key,
        seal_key=keys.seal_public,
        position=position,
        license_hint=license_hint,
        capabilities={
            "v": dict(READS),
            "sdk": f"meterkit {__version__}",
            "runtime": _runtime(),
            "platform": f"{platform.system()} {platform.machine()} python {platform.python_version()}"[:128],
            "hints": [],
        },
        made_at=made_at,
        nonce=to_base64url(nonce),
    )
    return signing.sign(envelopes.ACTIVATION, request.to_claims(), keys.sign)


def _runtime() -> str:
    from importlib import metadata  # noqa: PLC0415 - not on the way to an answer

    try:
        return f"onnxruntime {metadata.version('onnxruntime')}"[:64]
    except metadata.PackageNotFoundError:
        return "none"
