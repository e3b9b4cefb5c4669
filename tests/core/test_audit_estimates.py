"""An invoice with estimates against its evidence: what holds, what does not, and what nobody can prove."""

import core_world as world
import evidence_world as ew
import pytest
from evidence_world import forge
from forging import changed_by_one, put, unnoticed, value_of, with_value

from meterkit import audit, explaining
from meterkit.canonical import to_bytes
from meterkit.evidence import Bundle
from meterkit.keys import roots_fingerprint

FINGERPRINT = roots_fingerprint(world.ROOTS, world.THRESHOLD)
DAY_S = 86_400
# What may change without changing what is owed, as long as no bound is crossed; no test by sums can tell.
INDIFFERENT = [
    r"tokens/.* (exp|nbf|grace_s)",
    r"receipts/.* iat",
    r"licenses\.json \d+\.periods\.\d+\.since_run",
    r"plans/.* (interim|close\.days|close\.percent)",
    r"earlier/.* finalized_at",
    r"licenses\.json 0\.periods\.2\.whole_end_at",  # nothing is billed of the third month yet
    rf"tokens/{world.ident('tok', 'lift one')}\.jws (anchor\.seq|models\.0\.limit)",  # lift is not missing
]


@pytest.fixture(scope="module")
def bundles() -> tuple[Bundle, Bundle, Bundle]:
    return ew.estimated_story()


@pytest.fixture(scope="module")
def second(bundles) -> Bundle:
    return bundles[1]


def shown(result: audit.AuditResult) -> list[tuple]:
    return [(line.stated["kind"], line.stated["quantity"], line.stated["amount_minor"]) for line in result.lines]


def test_the_amounts_are_those_worked_out_by_hand(bundles):
    """The second month: crane is missing for 19 of its 30 days, barge for 29.

    crane: 90 × 19 ÷ 30 is 57, and of its 150 units 107 are accepted, 4 of them unsettled: 43. barge: 61 × 29 ÷ 30
    is 58.97: 58. 37 units are measured: 3.70. With 101 estimated ones they are 138: 11.90. The estimate: 8.20.
    Then crane comes with 20 more: 5.70; and barge is lost: nothing is estimated any more.
    """
    first, second, third = (audit.recompute(bundle, {FINGERPRINT}) for bundle in bundles)
    assert (first.findings, second.findings, third.findings) == ((), (), ())
    assert shown(first) == [("measured", 181, 1405)]
    assert shown(second) == [("estimated", 101, 820), ("measured", 37, 370)]
    assert shown(third) == [("estimated", 0, -820), ("measured", 57, 200)]
    told = second.lines[0].stated
    assert told["on_top_of"] == 37
    found = {each["quantity"]: (each["seconds"] // DAY_S, each["quantity_max"]) for each in told["estimates"]}
    assert found == {43: (19, 43), 58: (29, 89)}


def test_an_audit_says_what_it_cannot_prove_of_an_estimate(bundles):
    said = [[each for each in audit.recompute(bundle).unproven if "estimated" in each] for bundle in bundles]
    assert said == [[], [audit.ESTIMATED], [audit.ESTIMATED]]


def test_one_unit_changed_anywhere_is_found_though_all_is_signed_anew(second):
    found = list(changed_by_one(second))
    assert len(found) > 150
    assert unnoticed(found, INDIFFERENT) == []


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("models", 0, "limit"), 151),
        (("models", 0, "limit"), None),
        (("policy", "limit"), "flag"),
        (("anchor", "seq"), 2),
    ],
)
def test_what_a_token_allowed_can_not_be_raised_afterwards(second, path, new):
    """It bounds what crane is estimated at; barge is estimated below its bound, and the line says that, too."""
    found = {}
    for name in second.under("tokens"):
        value = value_of(second, name)
        result = audit.recompute(forge(second, {name: with_value(second, name, put(value, path, new))}))
        found[value["sub"]] = [each.what.partition(":")[0] for each in result.findings]
    assert {device for device, what in found.items() if what} == estimated(second)
    assert all("estimates" in what for what in found.values() if what)


def estimated(bundle: Bundle) -> set[str]:
    return {each["device"] for each in value_of(bundle, "invoice.json")["lines"][0]["estimates"]}


def test_what_is_gone_from_the_evidence_is_found(second):
    """Without its tokens, or its last batch, a device would be estimated otherwise, or not at all."""
    for name in second.under("tokens"):
        result = audit.recompute(forge(second, {name: None}))
        assert not result.holds or value_of(second, name)["sub"] not in estimated(second)


def test_a_declaration_that_is_added_or_left_out_is_found(bundles):
    _, second, third = bundles
    said = value_of(third, "decisions.json")
    (lost,) = said["declared"]
    without = audit.recompute(forge(third, {"decisions.json": to_bytes({**said, "declared": []})}))
    assert any(each.what == "quantity: it says 0, the evidence gives 58" for each in without.findings)
    early = {**value_of(second, "decisions.json"), "declared": [{**lost, "since_run": 2}]}
    found = audit.recompute(forge(second, {"decisions.json": to_bytes(early)})).findings
    assert any(each.what == "quantity: it says 101, the evidence gives 43" for each in found)


def test_an_estimated_line_is_told_in_words(bundles):
    told = "\n".join(explaining.explain(audit.recompute(bundles[1]), 1))
    crane = next(
        each
        for each in value_of(bundles[1], "invoice.json")["lines"][0]["estimates"]
        if each["seconds"] == 19 * DAY_S
    )
    assert "Line 1 of INV-000002: calls: detector, per call, estimated" in told
    assert "101 ESTIMATED units of detector, per call: no device has signed them" in told
    assert f"  43 for {crane['device']}, which has not reported on 1641600 s of the period" in told
    assert "    it used 90 in " in told
    assert "    no more than the 43 that its tokens still allowed it" in told
    assert told.count("no more than") == 1
    assert "For 37 units, the measured ones, that is 3.7 EUR, rounded 3.70 EUR." in told
    assert "For 138 units, measured and estimated, that is 11.9 EUR, rounded 11.90 EUR." in told
    assert "The estimate adds 8.20 EUR." in told
    assert told.endswith("This line bills 8.20 EUR.")
    told = explaining.explain(audit.recompute(bundles[2]), 1)
    assert "Billed before: 8.20 EUR, for 101 units." in told
    assert told[-1] == "This line bills -8.20 EUR."
