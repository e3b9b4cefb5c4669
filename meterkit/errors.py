"""Every refusal has one stable code, the same on the device, on the wire and in the tests.

    MeterkitError
     ├─ InputError      what was given does not have the form it must have
     ├─ TrustError      well formed, but not signed, current or addressed as it must be
     ├─ DenialError     a decision: the license does not allow this now
     ├─ LedgerError     a chain that does not hold, or a ledger that cannot be read or written
     ├─ DeviceError     this device, its directory or its runtime is not fit
     ├─ TransportError  the other side could not be reached, or did not answer as it must
     └─ ServiceError    the server understood and refuses (its HTTP status beside the code)

Where several faults hold at once, the first failing step of a procedure names the code; among denials it
is the one listed first here.
"""

from __future__ import annotations

from typing import ClassVar

from meterkit.tuples import NamedTuple


class Code(NamedTuple):
    """What one code means to a program (family, HTTP status) and to a person (one sentence)."""

    family: str
    status: int
    sentence: str


CODES: dict[str, Code] = {
    # -- form
    "not_text": Code("input", 422, "This is not text in the expected encoding."),
    "too_large": Code("input", 413, "This is larger than Meterkit accepts."),
    "too_many": Code("input", 413, "This holds more items than Meterkit accepts."),
    "malformed_envelope": Code("input", 422, "This is not a signed Meterkit envelope."),
    "malformed_header": Code("input", 422, "The envelope's header is not exactly what its kind requires."),
    "wrong_type": Code("input", 422, "This is signed, but as another kind of thing than expected here."),
    "malformed_json": Code("input", 422, "This is not strict JSON."),
    "not_canonical": Code("input", 422, "This JSON is not in its canonical form."),
    "malformed_members": Code("input", 422, "A member is missing, unknown, or out of its bounds."),
    "malformed_key": Code("input", 422, "This is not a usable key."),
    "malformed_price": Code("input", 422, "This price is not one that can be charged."),
    "malformed_plan": Code("input", 422, "This plan is not one that can be billed."),
    "malformed_code": Code("input", 422, "This is not an activation code."),
    "malformed_file": Code("input", 422, "This file is not what its name or its use promises."),
    "body_incomplete": Code("input", 400, "The request's body did not come whole; send it again."),
    "media_type_unsupported": Code("input", 415, "This media type is not accepted here."),
    # -- trust
    "key_unknown": Code("trust", 401, "The key that signed this is not known here for this purpose."),
    "signature_bad": Code("trust", 401, "The signature does not match what was signed."),
    "threshold_unmet": Code("trust", 401, "Too few of the trusted roots have signed this keyring."),
    "issuer_wrong": Code("trust", 403, "This was issued by another vendor than the one trusted here."),
    "audience_wrong": Code("trust", 403, "This is meant for another product."),
    "subject_wrong": Code("trust", 403, "This is meant for another device."),
    "key_not_valid": Code("trust", 401, "The signing key was not valid when this was signed."),
    "version_rollback": Code("trust", 409, "An older version than the one already held was offered."),
    "version_conflict": Code("trust", 409, "Two different documents carry one version number."),
    "token_revoked": Code("trust", 403, "This license token has been revoked; ask the vendor for a new one."),
    "serial_rollback": Code("trust", 409, "A newer license token is already installed; keep using it."),
    "proof_wrong": Code("trust", 403, "The activation code does not prove itself; check that it was typed right."),
    # -- denials
    "not_activated": Code("denial", 403, "This device has no license token; activate it with a code."),
    "clock_rolled_back": Code(
        "denial", 403, "The clock was set back; set it right and sync this device with the server."
    ),
    "token_not_yet_valid": Code("denial", 403, "The license starts later; check this device's clock."),
    "token_expired": Code("denial", 403, "The license token and its grace have ended; sync to renew it."),
    "model_not_licensed": Code("denial", 403, "The license does not cover this model; ask the vendor for it."),
    "model_digest_wrong": Code("denial", 403, "This file is not the model that the license names."),
    "ledger_unanchored": Code(
        "denial", 403, "The token does not continue this device's ledger; sync to get one that does."
    ),
    "limit_reached": Code("denial", 403, "The licensed units are used up; sync this device to get more."),
    # -- ledger
    "chain_broken": Code("ledger", 422, "The ledger's hash chain does not hold."),
    "record_out_of_place": Code("ledger", 422, "A record contradicts the records before it."),
    "batch_gap": Code("ledger", 409, "Records before this batch are missing; go on from the last receipt."),
    "receipt_foreign": Code("ledger", 409, "This receipt does not belong to this device's ledger."),
    "ledger_newer": Code("ledger", 409, "A newer Meterkit wrote this ledger; update the SDK."),
    "ledger_damaged": Code("ledger", 409, "The ledger is damaged; it has been set aside and can be exported."),
    "ledger_unwritable": Code("ledger", 503, "The ledger cannot be written; check disk space and permissions."),
    # -- device
    "platform_unsupported": Code("device", 501, "Meterkit's device SDK runs on Linux with CPython 3.11 or newer."),
    "directory_unusable": Code("device", 500, "The device directory cannot be used."),
    "product_wrong": Code("device", 409, "This device directory belongs to another product or vendor."),
    "device_key_bad": Code("device", 500, "The device key is damaged or readable by others."),
    "cells_exhausted": Code("device", 503, "Too many threads of this process run licensed models at once."),
    "device_closed": Code("device", 409, "This device has been closed."),
    "model_unsupported": Code("device", 422, "This model cannot be metered as its license says."),
    "run_path_unsupported": Code("device", 501, "This way of running a model is not metered yet; use run()."),
    "feed_unmeasurable": Code("device", 422, "The units of this input cannot be counted."),
    # -- transport
    "server_unreachable": Code("transport", 503, "The server cannot be reached; usage is kept and sent later."),
    "server_busy": Code("transport", 503, "The server asks to be called later."),
    "answer_refused": Code("transport", 502, "The answer did not come from a Meterkit server."),
    # -- service
    "unauthenticated": Code("service", 401, "An API key is needed, and this is not a valid one."),
    "forbidden": Code("service", 403, "This API key's scopes do not allow this."),
    "not_found": Code("service", 404, "There is no such thing here."),
    "method_not_allowed": Code("service", 405, "This cannot be done to that."),
    "already_exists": Code("service", 409, "There is one with this name already."),
    "idempotency_conflict": Code("service", 409, "This Idempotency-Key was used with another request."),
    "state_conflict": Code("service", 409, "Its state does not allow this."),
    "code_used_up": Code("service", 403, "All places of this license are taken; ask the vendor for more."),
    "replacements_used_up": Code(
        "service", 403, "This license has had all its replacements for now; ask the vendor."
    ),
    "code_expired": Code("service", 403, "This activation code is no longer valid; ask the vendor for a new one."),
    "license_inactive": Code("service", 403, "This license is suspended or has ended; ask the vendor."),
    "device_revoked": Code("service", 403, "This device has been revoked; ask the vendor."),
    "currency_wrong": Code("service", 422, "The currency does not fit."),
    "target_conflict": Code("service", 409, "A target takes raw usage or rated lines, never both."),
    "url_forbidden": Code("service", 422, "This URL leads where the server sends nothing."),
    "target_unavailable": Code("service", 503, "This target cannot be used; see its settings."),
    "run_superseded": Code("service", 409, "A later billing run exists; its limits cannot go back."),
    "already_initialized": Code("service", 409, "This directory already holds a server; nothing was changed."),
    "not_initialized": Code("service", 409, "This directory holds no server; run `meterkit-server init`."),
    "signing_unavailable": Code("service", 503, "The server cannot sign now; nothing was changed."),
    "database_unavailable": Code("service", 503, "The database cannot be used now; nothing was changed."),
    "audit_log_broken": Code("service", 500, "The audit log does not hold; nothing was changed."),
    "conservation_broken": Code(
        "service", 500, "What devices signed is not what is counted here; run `meterkit-server rebuild --check`."
    ),
    "audit_differs": Code("service", 422, "The invoice is not what its evidence proves."),
    "internal_error": Code("service", 500, "Something went wrong here; nothing was acknowledged."),
}


class MeterkitError(Exception):
    """The root of everything that Meterkit refuses.

    `code` is stable; `sentence` says what to do; `detail` says where. None of them ever holds a secret.
    """

    family: ClassVar[str] = ""

    def __init__(self, code: str, detail: str = "") -> None:
        if self.family and CODES[code].family != self.family:
            raise RuntimeError(f"code {code} is of another family than {type(self).__name__}")
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    @property
    def sentence(self) -> str:
        """One sentence that a person can act on."""
        return CODES[self.code].sentence

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return CODES[self.code].status

    def __str__(self) -> str:
        where = f" ({self.detail})" if self.detail else ""
        return f"{self.sentence}{where} [{self.code}]"


class InputError(MeterkitError):
    """What was given does not have the form it must have."""

    family = "input"


class TrustError(MeterkitError):
    """Well formed, but not signed, current or addressed as it must be."""

    family = "trust"


class DenialError(MeterkitError):
    """The license does not allow this now. Raised by the gate, from a `Denied` decision."""

    family = "denial"


class LedgerError(MeterkitError):
    """A chain that does not hold, or a ledger that cannot be read or written."""

    family = "ledger"


class DeviceError(MeterkitError):
    """This device, its directory or its runtime is not fit."""

    family = "device"


class TransportError(MeterkitError):
    """The other side could not be reached, or did not answer as it must."""

    family = "transport"

    def __init__(self, code: str, detail: str = "", *, retry_after_s: int | None = None) -> None:
        super().__init__(code, detail)
        self.retry_after_s = retry_after_s


class ServiceError(MeterkitError):
    """The server understood, and refuses."""

    family = "service"


FAMILIES: dict[str, type[MeterkitError]] = {
    kind.family: kind
    for kind in (InputError, TrustError, DenialError, LedgerError, DeviceError, TransportError, ServiceError)
}


def refusal(code: str, detail: str = "") -> MeterkitError:
    """Make the error that a known code stands for, as when a problem document is read back."""
    return FAMILIES[CODES[code].family](code, detail)
