"""Evidence files: the same parts give the same bytes, and no hostile file costs more than its size."""

import io
import zipfile

import evidence_world as ew
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit import audit, evidence, limits
from meterkit.errors import InputError
from meterkit.evidence import Bundle


def zipped(entries, *, compress=zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(InputError) as error:
        evidence.read_zip(data)
    return error.value.code


def test_a_bundle_survives_its_file():
    bundle, _ = ew.story()
    data = evidence.write_zip(bundle)
    assert evidence.write_zip(bundle) == data
    assert evidence.read_zip(data) == bundle
    assert audit.recompute(evidence.read_zip(data)).holds


def test_parts_are_written_in_one_order():
    parts = {"runs.json": b"1", "invoice.json": b"2"}
    one = evidence.write_zip(Bundle(manifest="m", parts=parts))
    other = evidence.write_zip(Bundle(manifest="m", parts=dict(reversed(parts.items()))))
    assert one == other


@pytest.mark.parametrize(
    "name",
    [
        "../invoice.json",
        "/invoice.json",
        "batches/../../x.jws",
        "batches/a/b.jws",
        "batches\\x.jws",
        "INVOICE.JSON",
        "invoice.json/",
        "readme.txt",
        "batches/x.json",
    ],
)
def test_a_path_outside_the_format_is_refused(name):
    assert refused(zipped([("manifest.jws", "m"), (name, "x")])) == "malformed_file"


def test_a_name_that_hides_its_end_is_refused():
    data = zipped([("manifest.jws", "m"), ("invoice.json~.jws", "x")])
    assert refused(data.replace(b"invoice.json~", b"invoice.json\x00")) == "malformed_file"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_part_that_stands_twice_is_refused():
    assert refused(zipped([("manifest.jws", "m"), ("runs.json", "1"), ("runs.json", "2")])) == "malformed_file"


def test_a_file_without_a_manifest_is_refused():
    assert refused(zipped([("runs.json", "1")])) == "malformed_file"


def test_what_is_no_zip_is_refused():
    for data in (b"", b"PK", b"x" * 100, zipped([("manifest.jws", "m")])[:-10]):
        assert refused(data) == "malformed_file"


def test_a_damaged_part_is_refused():
    data = bytearray(zipped([("manifest.jws", "m" * 500), ("runs.json", "z" * 500)], compress=zipfile.ZIP_STORED))
    data[data.index(b"zzzz")] ^= 1
    assert refused(bytes(data)) == "malformed_file"


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "FILE_BYTES_MAX", 10_000)
    bomb = zipped([("manifest.jws", "m"), ("runs.json", b"\0" * 10_001)])
    assert len(bomb) < 1000
    assert refused(bomb) == "too_large"
    monkeypatch.setattr(limits, "EVIDENCE_BYTES_MAX", 12_000)
    many = zipped([("manifest.jws", "m"), ("runs.json", b"\0" * 9_000), ("licenses.json", b"\0" * 9_000)])
    assert refused(many) == "too_large"
    monkeypatch.setattr(limits, "EVIDENCE_BYTES_MAX", len(many) - 1)
    assert refused(many) == "too_large"


def test_too_many_parts_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "EVIDENCE_PARTS_MAX", 2)
    parts = [("manifest.jws", "m"), *((f"tokens/{nth}.jws", "t") for nth in range(3))]
    assert refused(zipped(parts)) == "too_many"


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data):
    with pytest.raises(InputError):
        evidence.read_zip(data)


@given(data=st.data())
def test_a_flipped_bit_never_goes_unnoticed(data):
    bundle = ew.sign_bundle({"invoice.json": b'{"number":"INV-000001"}', "runs.json": b"[]"})
    whole = bytearray(evidence.write_zip(bundle))
    place = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[place // 8] ^= 1 << place % 8
    try:
        found = evidence.read_zip(bytes(whole))
    except InputError:
        return
    # It was a bit that says nothing of the parts, as a date; or the manifest does not fit what is left of them.
    signed = found.manifest == bundle.manifest and evidence.listing(found.parts) == evidence.listing(bundle.parts)
    assert (found == bundle) == signed
    assert signed or found.parts.keys() != bundle.parts.keys() or found.manifest != bundle.manifest
