"""The evidence of one invoice: a ZIP of parts, and a signed manifest with each part's SHA-256 (FORMATS).

    manifest.jws                        the manifest; names every other part
    invoice.json                        the finalized invoice, byte for byte
    earlier/<number>.json               every document before it, of this customer and currency
    licenses.json  runs.json            timelines, ends and bounds; the runs and their limits
    plans/<plan>.<version>.json         prices
    keyrings/<version>.json             the vendor's keyrings, signed by the roots
    activations/<device>.jws            activation requests, signed by the devices
    batches/<acceptance>.jws            batches, signed by the devices, in the order of acceptance
    acceptances.json                    of each batch: its device, and when it was received
    receipts/<device>.<epoch>.<seq>.<head>.jws   what the server confirmed
    tokens/<token>.jws                  what was granted to the devices
    decisions.json                      records that a named rule or decision keeps out of the sums, or lets in
    account.json                        tax rates, prepaid credits, voids, refunds, concessions, disputes, if any

Here is what the parts look like. Whether they are true, `meterkit.audit` says.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meterkit import limits, shapes
from meterkit.canonical import digest, from_canonical, sha256_hex, to_bytes
from meterkit.errors import InputError

MANIFEST = "manifest.jws"
INVOICE = "invoice.json"
LICENSES = "licenses.json"
RUNS = "runs.json"
ACCEPTANCES = "acceptances.json"
DECISIONS = "decisions.json"
ACCOUNT = "account.json"

_NAME = re.compile(
    r"(?:(?:invoice|licenses|runs|acceptances|decisions|account)\.json|keyrings/[0-9]{1,16}\.json"
    r"|earlier/[A-Z]{2,8}-[0-9]{6,16}\.json|plans/plan_[a-z2-7]{26}\.[0-9]{1,9}\.json"
    r"|(?:activations|batches|receipts|tokens)/[A-Za-z0-9_.-]{1,200}\.jws)\Z"
)
PART_NAME = shapes.matching(_NAME.pattern, "the name of an evidence part")
NUMBER = shapes.matching("[A-Z]{2,8}-[0-9]{6,16}", "an invoice number")
PLAN = shapes.ident("plan")
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # a file of the same parts has the same bytes whenever it is written

MANIFEST_SHAPE = shapes.Members(
    v=shapes.VERSION_1,
    iss=shapes.text(),
    iat=shapes.TIME,
    invoice=NUMBER,
    parts=shapes.listed(shapes.Members(name=PART_NAME, sha256=shapes.HASH), limits.EVIDENCE_PARTS_MAX),
)


def _with(defaults: dict[str, Any], shape: shapes.Shape) -> shapes.Shape:
    """A shape some of whose members older documents do not have."""

    def lenient(value: Any, where: str) -> Any:
        shape({**defaults, **value} if isinstance(value, dict) else value, where)
        return value

    return lenient


_MINOR = shapes.integer(-limits.INTEGER_MAX)
_RUN = shapes.Members(number=shapes.integer(1), cut_off=shapes.TIME, acceptance_max=shapes.integer())
_CITED = shapes.Members(
    device=shapes.DEVICE, epoch=shapes.EPOCH, head=shapes.HASH, first=shapes.integer(1), last=shapes.integer(1)
)
KINDS = ("recurring", "measured", "estimated", "commitment", "concession")  # of lines (BILLING §3)
PERCENT = shapes.matching(r"(?:100|[1-9]?[0-9](?:\.[0-9]{1,4})?)", "a percentage of at most 100")
_TAX = {"name": shapes.text(64), "percent": PERCENT}
_CARRIED = shapes.Members(service_start_at=shapes.TIME, service_end_at=shapes.TIME, quantity=shapes.UNITS)
_ESTIMATE = shapes.Members(
    device=shapes.DEVICE,
    quantity=shapes.UNITS,
    seconds=shapes.integer(1),
    basis_start_at=shapes.TIME,
    basis_end_at=shapes.TIME,
    basis_quantity=shapes.UNITS,
    quantity_max=shapes.optional(shapes.UNITS),
)
_LINE_MEMBERS = shapes.Members(
    license=shapes.LICENSE,
    charge=shapes.NAME,
    plan=PLAN,
    version=shapes.integer(1),
    kind=shapes.one_of(*KINDS),
    service_start_at=shapes.TIME,
    service_end_at=shapes.TIME,
    invoice_at=shapes.TIME,
    share=shapes.text(64),
    description=shapes.text(8192),
    quantity=shapes.UNITS,
    quantity_before=shapes.UNITS,
    owed_minor=_MINOR,
    billed_before_minor=_MINOR,
    amount_minor=_MINOR,
    amount=shapes.text(64),
    late=shapes.boolean,
    records=shapes.listed(_CITED, limits.EVIDENCE_PARTS_MAX),
    carried=shapes.listed(_CARRIED, limits.EVIDENCE_PARTS_MAX),
    estimates=shapes.listed(_ESTIMATE, limits.EVIDENCE_PARTS_MAX),
    on_top_of=shapes.optional(shapes.UNITS),
    tax=shapes.optional(shapes.Members(**_TAX)),
    lowers=shapes.optional(NUMBER),
)
_BESIDE_MEMBERS = shapes.Members(
    license=shapes.LICENSE,
    service_start_at=shapes.TIME,
    service_end_at=shapes.TIME,
    model=shapes.NAME,
    unit=shapes.METER_UNIT,
    unpriced=shapes.UNITS,
    unsettled=shapes.UNITS,
    quarantined=shapes.UNITS,
    dismissed=shapes.UNITS,
    repeated=shapes.UNITS,
    waived=shapes.UNITS,
)


_BESIDE = _with({"dismissed": 0, "repeated": 0, "waived": 0}, _BESIDE_MEMBERS)
_LINE = _with(
    {"carried": [], "estimates": [], "on_top_of": None, "tax": None, "lowers": None},
    _LINE_MEMBERS,
)
_TAX_SUM = _with(
    {"lowers": None},
    shapes.Members(**_TAX, base_minor=_MINOR, tax_minor=_MINOR, lowers=shapes.optional(NUMBER)),
)
_CREDIT_USE = _with(
    {"lowers": None},
    shapes.Members(credit=shapes.ident("cred"), amount_minor=_MINOR, lowers=shapes.optional(NUMBER)),
)
# What a document says only if there is something to say; documents from before it could be said have none of it.
_ADDED: dict[str, Any] = {
    "kind": "invoice",
    "taxes": [],
    "credits": [],
    "balance_minor": 0,
    "due_minor": 0,
    "due": "0",
    "replaces": [],
    "time_zone": "UTC",
}
INVOICE_MEMBERS = shapes.Members(
    v=shapes.VERSION_1,
    id=shapes.ident("inv"),
    number=NUMBER,
    customer=shapes.ident("cus"),
    customer_name=shapes.text(),
    time_zone=shapes.text(64),
    currency=shapes.text(3),
    run=_RUN,
    finalized_at=shapes.TIME,
    lines=shapes.listed(_LINE, limits.EVIDENCE_PARTS_MAX, least=1),
    beside=shapes.listed(_BESIDE, limits.EVIDENCE_PARTS_MAX),
    total_minor=_MINOR,
    total=shapes.text(64),
    evidence=shapes.HASH,
    kind=shapes.one_of("invoice", "credit_note"),
    taxes=shapes.listed(_TAX_SUM, limits.EVIDENCE_PARTS_MAX),
    credits=shapes.listed(_CREDIT_USE, limits.EVIDENCE_PARTS_MAX),
    balance_minor=_MINOR,
    due_minor=_MINOR,
    due=shapes.text(64),
    replaces=shapes.listed(NUMBER, limits.EVIDENCE_PARTS_MAX),
)
INVOICE_SHAPE = _with(_ADDED, INVOICE_MEMBERS)
_PERIOD_MEMBERS = shapes.Members(
    interval=shapes.one_of("day", "week", "month", "year"),
    nth=shapes.integer(),
    start_at=shapes.TIME,
    end_at=shapes.TIME,
    whole_start_at=shapes.TIME,
    whole_end_at=shapes.TIME,
    since_run=shapes.integer(),
    cut_run=shapes.integer(),
    end_before=shapes.optional(shapes.TIME),
)
_PERIOD = _with({"cut_run": 0, "end_before": None}, _PERIOD_MEMBERS)
_VERSION = _with(
    {"since_run": 0, "correction": None},
    shapes.Members(
        plan=PLAN,
        version=shapes.integer(1),
        starts_at=shapes.TIME,
        since_run=shapes.integer(),
        correction=shapes.optional(shapes.ident("cor")),
    ),
)
LICENSES_SHAPE = shapes.listed(
    shapes.Members(
        license=shapes.LICENSE,
        starts_at=shapes.TIME,
        ends_at=shapes.optional(shapes.TIME),
        versions=shapes.listed(_VERSION, 10_000, least=1),
        periods=shapes.listed(_PERIOD, limits.EVIDENCE_PARTS_MAX),
    ),
    limits.EVIDENCE_PARTS_MAX,
)
RUNS_SHAPE = shapes.listed(_RUN, limits.EVIDENCE_PARTS_MAX, least=1)
ACCEPTANCES_SHAPE = shapes.listed(
    shapes.Members(acceptance=shapes.integer(1), device=shapes.DEVICE, received_at=shapes.TIME),
    limits.EVIDENCE_PARTS_MAX,
)
_NAMED_RECORD = {"device": shapes.DEVICE, "epoch": shapes.EPOCH, "seq": shapes.integer(1), "hash": shapes.HASH}
_SINCE_RUN = shapes.integer(1)  # the first billing run that knows a decision
_DISMISSED = shapes.Members(
    device=shapes.DEVICE,
    epoch=shapes.EPOCH,
    seq=shapes.integer(1),
    head=shapes.HASH,
    acceptance=shapes.integer(1),  # how much was accepted when it was decided: it names the branch's own records
    since_run=_SINCE_RUN,
)
_DECLARED = shapes.Members(
    device=shapes.DEVICE, state=shapes.one_of("active", "retired", "lost"), since_run=_SINCE_RUN
)
DECISIONS_SHAPE = _with(
    {"released": [], "dismissed": [], "declared": []},
    shapes.Members(
        quarantined=shapes.listed(shapes.Members(**_NAMED_RECORD), limits.EVIDENCE_PARTS_MAX),
        released=shapes.listed(shapes.Members(**_NAMED_RECORD, since_run=_SINCE_RUN), limits.EVIDENCE_PARTS_MAX),
        dismissed=shapes.listed(_DISMISSED, limits.EVIDENCE_PARTS_MAX),
        declared=shapes.listed(_DECLARED, limits.EVIDENCE_PARTS_MAX),
    ),
)
_KEY = shapes.Members(
    license_id=shapes.LICENSE,
    start_at=shapes.TIME,
    end_at=shapes.TIME,
    charge=shapes.NAME,
    plan_id=PLAN,
    version=shapes.integer(1),
    kind=shapes.one_of(*KINDS),
)
_CREDIT = shapes.Members(
    id=shapes.ident("cred"),
    amount_minor=shapes.integer(1),
    priority=shapes.integer(),
    starts_at=shapes.TIME,
    expires_at=shapes.optional(shapes.TIME),
    purchased_at=shapes.TIME,
    since_run=_SINCE_RUN,
)
ACCOUNT_SHAPE = shapes.Members(
    tax_rates=shapes.listed(
        shapes.Members(starts_at=shapes.TIME, since_run=_SINCE_RUN, **_TAX), limits.EVIDENCE_PARTS_MAX
    ),
    credits=shapes.listed(_CREDIT, limits.EVIDENCE_PARTS_MAX),
    refunds=shapes.listed(
        shapes.Members(amount_minor=shapes.integer(1), since_run=_SINCE_RUN), limits.EVIDENCE_PARTS_MAX
    ),
    voids=shapes.listed(shapes.Members(number=NUMBER, since_run=_SINCE_RUN), limits.EVIDENCE_PARTS_MAX),
    concessions=shapes.listed(
        shapes.Members(key=_KEY, amount_minor=shapes.integer(1), since_run=_SINCE_RUN), limits.EVIDENCE_PARTS_MAX
    ),
    disputes=shapes.listed(
        shapes.Members(key=_KEY, since_run=_SINCE_RUN, until_run=shapes.optional(_SINCE_RUN)),
        limits.EVIDENCE_PARTS_MAX,
    ),
)
KEYRING_SHAPE = shapes.listed(shapes.JWS, limits.ROOTS_MAX, least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An evidence file taken apart: its manifest as signed text, and its parts by name. Nothing is proven yet."""

    manifest: str
    parts: Mapping[str, bytes]

    def read(self, name: str, shape: shapes.Shape) -> Any:
        """Read one JSON part, canonical and of its shape; `malformed_file` if it is missing."""
        if name not in self.parts:
            raise InputError("malformed_file", f"{name} is missing")
        value = from_canonical(self.parts[name], bytes_max=limits.FILE_BYTES_MAX)
        shape(value, name)
        return value

    def under(self, folder: str) -> list[str]:
        """The names of the parts in a folder, in order."""
        return sorted(name for name in self.parts if name.startswith(f"{folder}/"))

    def text(self, name: str) -> str:
        """A part that is one signed envelope."""
        try:
            return self.parts[name].decode("ascii")
        except UnicodeDecodeError:
            raise InputError("not_text", name) from None


def listing(parts: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Name parts with their SHA-256, in order."""
    return [{"name": name, "sha256": sha256_hex(parts[name])} for name in sorted(parts)]


def digest_of(parts: Mapping[str, bytes]) -> str:
    """One digest over all parts but the invoice, which carries it: what it was computed from."""
    others = {name: data for name, data in parts.items() if name != INVOICE}
    return digest("mk-evidence-parts", to_bytes(listing(others))).hex()


def manifest_claims(*, issuer: str, iat: int, invoice: str, parts: Mapping[str, bytes]) -> dict[str, Any]:
    """Write the manifest's payload; sign it as `envelopes.EVIDENCE`."""
    claims = {"v": 1, "iss": issuer, "iat": iat, "invoice": invoice, "parts": listing(parts)}
    MANIFEST_SHAPE(claims, "manifest")
    return claims


def write_zip(bundle: Bundle) -> bytes:
    """Write the evidence file; the same parts give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        parts = {MANIFEST: bundle.manifest.encode("ascii"), **dict(sorted(bundle.parts.items()))}
        for name, data in parts.items():
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return out.getvalue()


def read_zip(data: bytes) -> Bundle:
    """Take an evidence file apart, in bounded time and memory.

    Raises:
        InputError: `too_large`, `too_many`; `malformed_file` for what is no ZIP, a damaged or encrypted part,
            a part twice, a path outside the format, or a missing manifest.
    """
    if len(data) > limits.EVIDENCE_BYTES_MAX:
        raise InputError("too_large", f"evidence: at most {limits.EVIDENCE_BYTES_MAX} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = _read_parts(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError):
        raise InputError("malformed_file", "evidence: not a sound ZIP file") from None
    manifest = parts.pop(MANIFEST, None)
    if manifest is None or not manifest.isascii():
        raise InputError("malformed_file", "evidence: no manifest.jws")
    return Bundle(manifest=manifest.decode("ascii"), parts=parts)


def _read_parts(archive: zipfile.ZipFile) -> dict[str, bytes]:
    entries = archive.infolist()
    if len(entries) > limits.EVIDENCE_PARTS_MAX + 1:
        raise InputError("too_many", f"evidence: at most {limits.EVIDENCE_PARTS_MAX} parts")
    parts: dict[str, bytes] = {}
    left = limits.EVIDENCE_BYTES_MAX
    for entry in entries:
        name = entry.filename
        if name != entry.orig_filename or (name != MANIFEST and not _NAME.match(name)):
            raise InputError("malformed_file", f"evidence: no such part: {name[:80]!a}")
        if name in parts or entry.flag_bits & 1:
            raise InputError("malformed_file", f"evidence: {name} stands twice, or is encrypted")
        room = min(left, limits.FILE_BYTES_MAX)
        with archive.open(entry) as part:
            data = part.read(room + 1)  # what it really inflates to, whatever its header says
        if len(data) > room:
            raise InputError("too_large", f"evidence: {name}")
        left -= len(data)
        parts[name] = data
    return parts
