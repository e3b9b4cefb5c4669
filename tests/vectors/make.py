"""Write the conformance vectors anew: python tests/vectors/make.py

The same bytes come out every time; `tests/core/test_vectors.py` says so. `prices.json` is not made here: its
figures were worked by hand.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "support")]

import core_cases_ledgers as ledgers  # noqa: E402 - the two paths above are where these are
import core_cases_payloads as payloads  # noqa: E402
import core_cases_text as texts  # noqa: E402
import core_cases_tokens as tokens  # noqa: E402
import core_cases_trust as trust  # noqa: E402
from core_world import CODE, ISSUER, THRESHOLD  # noqa: E402
from core_world import ROOTS as ROOT_KEYS  # noqa: E402


def document(about: str, given: dict[str, Any], cases: Iterable[dict[str, Any]]) -> bytes:
    """One file: what it is about, what all its cases share, and one case a line."""
    lines = ",\n  ".join(map(json.dumps, cases))
    head = f'{{\n "about": {json.dumps(about)},\n "given": {json.dumps(given)},\n'
    return f'{head} "cases": [\n  {lines}\n ]\n}}\n'.encode()


def _token_cases() -> Iterable[dict[str, Any]]:
    yield from tokens.good()
    yield from tokens.step_1()
    yield from tokens.step_2()
    yield from tokens.steps_3_and_4()
    yield from payloads.step_5()
    yield from tokens.steps_6_to_9()
    yield from tokens.first_failing_step()


def documents() -> dict[str, bytes]:
    """Every file of vectors, by name."""
    roots = {"issuer": ISSUER, "roots": list(ROOT_KEYS), "threshold": THRESHOLD}
    shared = trust.given()
    return {
        "tokens.json": document(
            "Verify `token` with what is given (a case's own members go first). `state` is what then holds.",
            tokens.given(),
            _token_cases(),
        ),
        "envelopes.json": document("Open `envelope` as a `read_as`.", shared, trust.passed_off()),
        "keyrings.json": document(
            "Take the `held` documents one after another, then `document`.", roots, trust.keyrings()
        ),
        "revocations.json": document("Take `held`, if any, then `revocations`.", shared, trust.revocations()),
        "receipts.json": document("Open `receipt`.", shared, trust.receipts()),
        "chains.json": document(
            "Follow `records` from the beginning of the ledger; they must reach `head`.",
            ledgers.given(),
            ledgers.chains(),
        ),
        "batches.json": document(
            "Open `batch`; then `follow` its records from the beginning of its signer's ledger.",
            ledgers.given(),
            ledgers.batches(),
        ),
        "canonical.json": document(
            "Read `json` (or the bytes of `json_hex`) strictly, write it as `canonical`.", {}, texts.canonical()
        ),
        "keys.json": document("Read the public `key`; `kid` is its thumbprint.", {}, texts.keys()),
        "codes.json": document("Read the activation `code`.", {}, texts.codes()),
        "activations.json": document(
            "Open `request`; then check its `proof` against the code's secret.",
            {"code_id": CODE.id, "secret_hex": CODE.secret.hex()},
            texts.activations(),
        ),
        "replies.json": document("Read the frame of `reply`.", {}, texts.replies()),
    }


if __name__ == "__main__":
    for name, data in documents().items():
        (HERE / name).write_bytes(data)
