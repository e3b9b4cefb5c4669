"""An invoice against its evidence: what holds, what does not, and where."""

import re

import core_world as world
import evidence_world as ew
import pytest
from evidence_world import forge
from forging import changed_by_one, leaves, one_more, put, server_parts, unnoticed, value_of, with_value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterkit import audit, envelopes, evidence, signing
from meterkit.canonical import from_base64url, from_bytes, to_base64url, to_bytes
from meterkit.errors import MeterkitError
from meterkit.evidence import Bundle
from meterkit.keys import roots_fingerprint

FINGERPRINT = roots_fingerprint(world.ROOTS, world.THRESHOLD)
# What may change without changing what is owed, as long as no bound is crossed; no test by sums can tell.
INDIFFERENT = [
    r"tokens/.* (exp|nbf|grace_s|anchor\.seq|models\.\d+\.limit)",
    r"receipts/.* iat",  # it only says that the confirmation came later than it did
    r"licenses\.json \d+\.periods\.\d+\.since_run",
    r"plans/.* interim",
    r"earlier/.* finalized_at",
]


@pytest.fixture(scope="module")
def bundles() -> tuple[Bundle, Bundle]:
    return ew.story()


@pytest.fixture(scope="module")
def second(bundles) -> Bundle:
    return bundles[1]


def test_an_honest_invoice_holds(bundles):
    first, second = (audit.recompute(bundle, {FINGERPRINT}) for bundle in bundles)
    assert first.holds
    assert second.holds
    assert (first.number, second.number) == ("INV-000001", "INV-000002")
    assert all(line.stated == line.computed for result in (first, second) for line in result.lines)


def test_the_amounts_are_those_worked_out_by_hand(bundles):
    first, second = (audit.recompute(bundle) for bundle in bundles)
    shown = [(line.stated["charge"], line.stated["quantity"], line.stated["amount_minor"]) for line in first.lines]
    # 100 × 0.10 + 20 × 0.05; 49; two devices at 2; 120 − 11 − 49; and the next month's fee in advance
    assert shown == [
        ("calls", 120, 1100),
        ("fee", 1, 4900),
        ("fleet", 2, 400),
        ("least", 1, 6000),
        ("fee", 1, 4900),
    ]
    shown = [
        (line.stated["charge"], line.stated["quantity"], line.stated["amount_minor"]) for line in second.lines
    ]
    assert shown[:2] == [("calls", 127, 35), ("least", 1, -35)]  # seven late units, and the commitment lowered
    assert shown[2:] == [("calls", 24, 240), ("fleet", 2, 400), ("least", 1, 6860), ("fee", 1, 4900)]
    assert [line.stated["late"] for line in second.lines] == [True, True, False, False, False, False]
    beside = [(each["unsettled"], each["quarantined"]) for each in second.invoice["beside"]]
    assert beside == [(4, 0), (0, 1000)]
    assert (first.invoice["total"], second.invoice["total"]) == ("173.00", "124.00")


def test_both_branches_of_a_fork_are_billed_and_cited(second):
    forked = audit.recompute(second).lines[2].stated["records"]
    assert len({cited["head"] for cited in forked}) == 2
    assert len({(cited["device"], cited["epoch"]) for cited in forked}) == 1


def test_the_vendor_can_be_pinned(second):
    thumbprints = [world.key(name).kid for name in world.ROOT_NAMES]
    assert audit.recompute(second, {FINGERPRINT}).pinned
    assert audit.recompute(second, set(thumbprints[:2])).pinned
    for wrong in ({"0" * 64}, {thumbprints[0]}, {thumbprints[0], thumbprints[2]}, set()):
        result = audit.recompute(second, wrong)
        assert [finding.place for finding in result.findings] == ["keyrings"]


def test_without_a_pin_the_fingerprint_is_told_and_unproven(second):
    result = audit.recompute(second)
    assert result.holds
    assert not result.pinned
    assert result.fingerprint == FINGERPRINT
    assert any("roots" in each for each in result.unproven)
    assert any("no device is missing" in each for each in result.unproven)


def test_one_unit_changed_anywhere_is_found_though_all_is_signed_anew(second):
    found = list(changed_by_one(second))
    assert len(found) > 200
    assert unnoticed(found, INDIFFERENT) == []
    assert all(finding.place and finding.what for _, result in found for finding in result.findings)


def test_the_invoice_in_hand_binds_its_evidence(second):
    """Whoever has the invoice already cannot be shown other evidence for it, not even indifferently other."""
    for name in server_parts(second):
        if name == "invoice.json" or name.startswith("keyrings/"):
            continue
        value = value_of(second, name)
        path, leaf = next((path, leaf) for path, leaf in leaves(value) if one_more(leaf) is not None)
        changed = {name: with_value(second, name, put(value, path, one_more(leaf)))}
        assert not audit.recompute(forge(second, changed, own_digest=False)).holds, name


def test_a_device_s_own_word_cannot_be_changed(second):
    for name in [*second.under("batches"), *second.under("activations"), *second.under("keyrings")]:
        data = second.parts[name]
        if name.endswith(".json"):
            document = from_bytes(data, bytes_max=10**6)
            header, body, tail = document[0].split(".")
            forged = to_bytes([f"{header}.{_one_unit_more(body)}.{tail}", *document[1:]])
        else:
            header, body, tail = data.decode().split(".")
            forged = f"{header}.{_one_unit_more(body)}.{tail}".encode()
        result = audit.recompute(forge(second, {name: forged}))
        assert [finding.place for finding in result.findings] == [name]


def _one_unit_more(body: str) -> str:
    data = from_base64url(body)
    changed = re.sub(
        rb'("units":|"to":|"made_at":|"iat":)(\d+)', lambda m: m[1] + str(int(m[2]) + 1).encode(), data
    )
    assert changed != data
    return to_base64url(changed)


def test_the_vendor_s_key_does_not_make_a_device_s_batch(second):
    name = second.under("batches")[0]
    forged = signing.sign_payload(envelopes.BATCH, ew.payload(second.parts[name]), world.key("invoice"))
    (finding,) = audit.recompute(forge(second, {name: forged.encode()})).findings
    assert finding.place == name
    assert "key_unknown" in finding.what


@pytest.mark.parametrize("folder", ["batches", "activations", "keyrings", "plans", "earlier"])
def test_a_missing_part_is_found(second, folder):
    name = second.under(folder)[0]
    assert not audit.recompute(forge(second, {name: None})).holds


@pytest.mark.parametrize(
    "name", ["invoice.json", "licenses.json", "runs.json", "acceptances.json", "decisions.json"]
)
def test_a_missing_table_is_named(second, name):
    (finding,) = audit.recompute(forge(second, {name: None})).findings
    assert name in finding.place or name in finding.what


def test_a_batch_left_out_with_all_that_names_it_is_found(second):
    """Whoever drops a device's last report must also change the lines: they say more than is proven."""
    stated = value_of(second, "acceptances.json")
    last = stated[3]  # the crane's seven late units
    receipts = [name for name in second.under("receipts") if last["device"] in name]
    changes: dict[str, bytes | None] = dict.fromkeys(receipts)
    changes[f"batches/{last['acceptance']:012d}.jws"] = None
    changes["acceptances.json"] = to_bytes([each for each in stated if each != last])
    assert not audit.recompute(forge(second, changes)).holds


def test_the_manifest_must_name_exactly_the_parts(second):
    name = second.under("tokens")[0]
    fewer = {other: data for other, data in second.parts.items() if other != name}
    assert audit.recompute(Bundle(manifest=second.manifest, parts=fewer)).findings[0].place == name
    more = {**second.parts, "tokens/extra.jws": b"x"}
    assert audit.recompute(Bundle(manifest=second.manifest, parts=more)).findings[0].place == "tokens/extra.jws"
    other = {**second.parts, name: second.parts[name] + b"\n"}
    assert audit.recompute(Bundle(manifest=second.manifest, parts=other)).findings[0].place == name


def test_only_a_key_for_invoices_signs_a_manifest(second):
    claims = evidence.manifest_claims(
        issuer=world.ISSUER, iat=world.NOW, invoice="INV-000002", parts=dict(second.parts)
    )
    forged = signing.sign(envelopes.EVIDENCE, claims, world.key("receipt"))
    (finding,) = audit.recompute(Bundle(manifest=forged, parts=second.parts)).findings
    assert finding.place == "manifest.jws"


def test_a_line_left_out_and_a_line_made_up_are_both_found(second):
    invoice = value_of(second, "invoice.json")
    without = {**invoice, "lines": invoice["lines"][1:]}
    findings = audit.recompute(forge(second, {"invoice.json": to_bytes(without)})).findings
    assert any("a line is missing: calls" in finding.what for finding in findings)
    twice = {**invoice, "lines": [*invoice["lines"], invoice["lines"][0]]}
    findings = audit.recompute(forge(second, {"invoice.json": to_bytes(twice)})).findings
    assert any(finding.place == "invoice.json line 7" for finding in findings)


def test_a_difference_names_its_line_and_member(second):
    invoice = value_of(second, "invoice.json")
    invoice["lines"][2]["quantity"] += 1
    findings = audit.recompute(forge(second, {"invoice.json": to_bytes(invoice)})).findings
    assert [(finding.place, finding.what) for finding in findings] == [
        ("invoice.json line 3", "quantity: it says 25, the evidence gives 24")
    ]


def test_an_earlier_line_is_recomputed_too(second):
    name = "earlier/INV-000001.json"
    earlier = value_of(second, name)
    earlier["lines"][0]["amount_minor"] += 1
    findings = audit.recompute(forge(second, {name: to_bytes(earlier)})).findings
    assert findings[0].place == f"{name} line 1"


def test_a_quarantine_must_have_its_reason(second):
    decided = value_of(second, "decisions.json")
    (only,) = decided["quarantined"]
    assert (
        "must be quarantined"
        in audit.recompute(forge(second, {"decisions.json": to_bytes({"quarantined": []})})).findings[0].what
    )
    cited = value_of(second, "invoice.json")["lines"][0]["records"][0]
    crane = {**only, "device": cited["device"], "epoch": cited["epoch"], "seq": 3, "hash": "0" * 64}
    changed = to_bytes({"quarantined": [only, crane]})
    assert "no such record" in audit.recompute(forge(second, {"decisions.json": changed})).findings[0].what


def test_a_document_that_is_no_invoice_ends_the_audit_with_its_name(second):
    for name in server_parts(second):
        if name.endswith(".json"):
            (finding,) = audit.recompute(forge(second, {name: b'{"v":1}'}, own_digest=False)).findings
            assert name in finding.place


def test_nothing_signed_in_the_bundle_is_trusted_under_another_issuer(second):
    """A keyring of somebody else, put in front of the vendor's, changes whose the roots are: the pin says so."""
    roots = {"threshold": 1, "keys": [world.key("root 4").verify_key.text]}
    theirs = world.keyring_document(to_bytes(world.keyring_claims(roots=roots)), ("root 4",))
    forged = forge(second, {"keyrings/1.json": to_bytes(theirs)})
    assert audit.recompute(forged).fingerprint != FINGERPRINT
    assert not audit.recompute(forged, {FINGERPRINT}).holds


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.sampled_from(["", "0", "EUR", "lic_" + "a" * 26, "0" * 64, "1/0", "-5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["v", "a"]), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_stands_in_a_part_an_audit_ends_with_a_result(second, data):
    name = data.draw(st.sampled_from([name for name in server_parts(second) if name.endswith(".json")]))
    value = value_of(second, name)
    paths = [path for path, _ in leaves(value)]
    paths += [path[:cut] for path in paths for cut in range(1, len(path))]
    changed = put(value, data.draw(st.sampled_from(paths)), data.draw(JSON)) if paths else data.draw(JSON)
    try:
        forged = forge(second, {name: to_bytes(changed)})
    except (TypeError, AttributeError, MeterkitError):
        return  # it does not even make a manifest
    result = audit.recompute(forged)
    assert result.findings or result.lines
