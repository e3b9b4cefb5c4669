"""Identifiers: what they are made of."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit import ids


@given(st.binary(min_size=16, max_size=16))
def test_an_id_is_its_prefix_and_base32(random):
    prefix, _, body = ids.make("lic", random).partition("_")
    assert prefix == "lic"
    assert re.fullmatch("[a-z2-7]{26}", body)
    assert base64.b32decode(body.upper() + "======") == random


@pytest.mark.parametrize("size", [0, 15, 17])
def test_less_or_more_randomness_makes_none(size):
    with pytest.raises(ValueError, match="16 random bytes"):
        ids.make("lic", bytes(size))
