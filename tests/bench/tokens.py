"""Verifying a token, all nine steps ÷ one bare Ed25519 verification."""

import time
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from harness import Row, compare
from vendor import ISSUER, PRODUCT, Vendor, call_model, new_id

from meterkit import envelopes, tokens
from meterkit.canonical import from_base64url, sha256_hex
from meterkit.clocks import NS, Instant
from meterkit.envelopes import Addressee
from meterkit.keyrings import follow
from meterkit.positions import Position
from meterkit.revocations import Revocations


def rows() -> list[Row]:
    """One row."""
    vendor = Vendor(now=int(time.time()))
    device = f"dev_{vendor.root.kid}"
    models = [call_model(f"model-{n}", sha256_hex(b"%d" % n), 1000) for n in range(1)]
    text = vendor.token(device, Position(epoch=new_id("ep")), models)
    verify = partial(
        tokens.verify,
        text,
        keyring=follow(vendor.keyring(), trust=vendor.trust, held=None),
        addressee=Addressee(issuer=ISSUER, product=PRODUCT, device=device),
        revocations=Revocations(),
        serial_min=0,
        now=Instant(effective_ns=(vendor.now + 60) * NS, boot_ns=0, boot=""),
    )
    parts = envelopes.unverified_parts(envelopes.TOKEN, text)
    key = Ed25519PublicKey.from_public_bytes(from_base64url(vendor.online.verify_key.text))
    bare = partial(key.verify, parts.signature, parts.signed)
    return [compare("token verify, nine steps ÷ bare Ed25519", bare, bare, verify, pairs=200)]
