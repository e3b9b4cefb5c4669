"""Which keyring may follow which, whoever holds which roots; and revocation lists, which follow too."""

from itertools import chain, combinations

import pytest
from core_world import (
    ISSUER,
    KEYRING,
    NEW_ROOT_NAMES,
    NEW_ROOTS,
    NOT_REVOKED,
    OTHER_DEVICE,
    ROOT_NAMES,
    ROOTS,
    TRUST,
    ident,
    key,
    keyring_claims,
    keyring_document,
    keyring_key,
    outcome,
    revocations_claims,
    signed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from meterkit import envelopes
from meterkit.keyrings import follow
from meterkit.keys import Trust
from meterkit.revocations import Revocations, open_revocations

OLD = {"threshold": 2, "keys": list(ROOTS)}
NEW = {"threshold": 2, "keys": list(NEW_ROOTS)}
FIRST = keyring_document()
EVERYBODY = sorted({*ROOT_NAMES, *NEW_ROOT_NAMES, "stranger"})


def held_first():
    return follow(FIRST, trust=TRUST, held=None)


def all_subsets(names):
    return chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1))


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_a_keyring_holds_if_and_only_if_the_threshold_has_signed(threshold):
    trust = Trust(issuer=ISSUER, roots=ROOTS, threshold=threshold)
    claims = keyring_claims(roots={"threshold": threshold, "keys": list(ROOTS)})
    for signers in all_subsets([*ROOT_NAMES, "stranger", "token"]):
        enough = len(set(signers) & set(ROOT_NAMES)) >= threshold
        verdict = outcome(follow, keyring_document(claims, signers), trust=trust, held=None)
        assert verdict == ("ok" if enough else "threshold_unmet"), signers


def test_changing_the_roots_takes_the_threshold_of_both():
    claims = keyring_claims(version=2, roots=NEW)
    held = held_first()
    for signers in all_subsets(EVERYBODY):
        of_old = len(set(signers) & set(ROOT_NAMES))
        of_new = len(set(signers) & set(NEW_ROOT_NAMES))
        verdict = outcome(follow, keyring_document(claims, signers), trust=TRUST, held=held)
        assert verdict == ("ok" if min(of_old, of_new) >= 2 else "threshold_unmet"), signers


@settings(max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_the_version_held_never_goes_down(versions):
    held = None
    for version in versions:
        document = keyring_document(keyring_claims(version=version))
        before = held.version if held else 0
        verdict = outcome(follow, document, trust=TRUST, held=held)
        assert verdict == ("ok" if version >= before else "version_rollback")
        if verdict == "ok":
            held = follow(document, trust=TRUST, held=held)
            assert held.version == max(before, version)


def test_a_device_that_was_away_walks_through_every_change_of_roots():
    middle = keyring_document(keyring_claims(version=2, roots=NEW), ("root 1", "root 3", "root 4"))
    later = keyring_document(keyring_claims(version=3, roots=NEW), ("root 4", "root 5"))
    back = keyring_document(keyring_claims(version=4, roots=OLD), ("root 1", "root 3", "root 4"))
    held = held_first()
    assert outcome(follow, later, trust=TRUST, held=held) == "threshold_unmet"
    for document in (middle, later, back):
        held = follow(document, trust=TRUST, held=held)
    assert (held.version, set(held.roots)) == (4, set(ROOTS))


def test_the_roots_that_once_were_trusted_do_not_sign_for_ever():
    """What the vendor's code pinned is where trust began; after a change the old roots say nothing more."""
    change = keyring_document(keyring_claims(version=2, roots=NEW), ("root 1", "root 3", "root 4"))
    held = follow(change, trust=TRUST, held=held_first())
    stolen = keyring_document(keyring_claims(version=3, roots=OLD), ("root 1", "root 2"))
    assert outcome(follow, stolen, trust=TRUST, held=held) == "threshold_unmet"


def test_roots_of_small_order_are_never_taken():
    claims = keyring_claims(version=2, roots={"threshold": 1, "keys": ["A" * 43]})
    assert outcome(follow, keyring_document(claims), trust=TRUST, held=held_first()) == "malformed_key"


def test_the_same_version_must_say_the_same():
    held = held_first()
    assert follow(keyring_document(signers=("root 2", "root 3")), trust=TRUST, held=held) is held
    for changes in ({"expires": 1}, {"keys": []}, {"keys": [keyring_key("token", "token")]}, {"iat": 1}):
        document = keyring_document(keyring_claims(**changes))
        assert outcome(follow, document, trust=TRUST, held=held) == "version_conflict"


def test_a_refused_keyring_changes_nothing():
    held = held_first()
    before = (held.version, dict(held.keys), held.roots)
    outcome(follow, keyring_document(keyring_claims(version=2, keys=[]))[:1], trust=TRUST, held=held)
    assert (held.version, dict(held.keys), held.roots) == before


@pytest.mark.parametrize("document", [None, "x", (), {}, [None], [1], [""], [b""], [FIRST]], ids=repr)
def test_what_is_no_document_is_refused(document):
    verdict = outcome(follow, document, trust=TRUST, held=None)
    assert verdict in {"malformed_members", "not_text", "malformed_envelope"}


# -- revocation lists


def listed(**changes):
    return signed(envelopes.REVOCATIONS, revocations_claims(**changes), "revocations")


def take(text, held=NOT_REVOKED):
    return open_revocations(text, issuer=ISSUER, keyring=KEYRING, held=held)


def test_a_list_revokes_what_it_names_and_nothing_else():
    revocations = take(listed())
    named = {"jti": ident("tok", "stolen"), "license_id": ident("lic", "unpaid"), "device": OTHER_DEVICE}
    free = {"jti": ident("tok"), "license_id": ident("lic"), "device": f"dev_{key('device').kid}"}
    assert outcome(revocations.check, **free) == "ok"
    for member in free:
        assert outcome(revocations.check, **{**free, member: named[member]}) == "token_revoked"


def test_a_later_list_may_name_less_and_an_older_one_is_refused():
    third, fourth = listed(), listed(version=4, tokens=[])
    held = take(fourth, take(third))
    assert held.tokens == frozenset()
    assert outcome(take, third, held) == "version_rollback"
    assert take(fourth, held) == held


def test_two_lists_of_one_version_are_a_conflict():
    assert outcome(take, listed(devices=[]), take(listed())) == "version_conflict"


def test_a_list_is_written_as_it_was_read():
    revocations = take(listed())
    assert revocations.to_claims() == revocations_claims()
    assert take(signed(envelopes.REVOCATIONS, revocations.to_claims(), "revocations")) == revocations


def test_before_any_list_nothing_is_revoked():
    assert Revocations().version == 0
    assert outcome(Revocations().check, jti="", license_id="", device="") == "ok"
