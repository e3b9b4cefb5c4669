"""The codes: each means one thing, says it in one sentence, and is used; none is used that is not there."""

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from meterkit import errors
from meterkit.errors import CODES, FAMILIES, MeterkitError, TransportError, refusal

ROOT = Path(__file__).parents[2]
PACKAGES = ("meterkit", "device_sdk", "licensing_server")
TABLE = ROOT / "meterkit" / "errors.py"
CALLS = {kind.__name__ for kind in (*FAMILIES.values(), MeterkitError)} | {"refusal"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path != TABLE:
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def texts(tree: ast.AST) -> set[str]:
    """Every piece of text in a module that is no docstring."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    }


def codes_raised(tree: ast.AST) -> Iterator[str]:
    """The code of every error made by its class, and of every denial, where it is written out."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = node.args[:1] if name in CALLS else []
        given += [word.value for word in node.keywords if name == "Denied" and word.arg == "code"]
        given += [word.value for word in node.keywords if name == "Standing" and word.arg == "denial"]
        yield from (each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str))


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_family_a_status_and_one_sentence(code):
    meaning = CODES[code]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
    assert meaning.family in FAMILIES
    assert 400 <= meaning.status <= 599
    assert re.fullmatch(r"[A-Z][^\n]*[^\s.]\.", meaning.sentence)
    assert ". " not in meaning.sentence.replace("...", "")
    assert len(meaning.sentence) <= 100


def test_no_two_codes_say_the_same():
    assert len({meaning.sentence for meaning in CODES.values()}) == len(CODES)


def test_codes_are_listed_family_by_family_in_their_order_of_precedence():
    families = list(dict.fromkeys(meaning.family for meaning in CODES.values()))
    assert families == list(FAMILIES)
    blocks = [meaning.family for meaning in CODES.values()]
    assert blocks == sorted(blocks, key=families.index)


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = re.findall(r"[├└]─ (\w+)", errors.__doc__)
    assert drawn == [kind.__name__ for kind in FAMILIES.values()]
    assert drawn == [kind.__name__ for kind in MeterkitError.__subclasses__()]


def test_every_code_that_is_raised_is_in_the_table():
    raised = {(where, code) for where, tree in sources() for code in codes_raised(tree)}
    assert len(raised) > 20
    assert {(where, code) for where, code in raised if code not in CODES} == set()


def test_every_code_in_the_table_is_used():
    used = set().union(*(texts(tree) for _, tree in sources()))
    assert sorted(set(CODES) - used) == []


@pytest.mark.parametrize("code", CODES)
def test_a_refusal_says_its_sentence_its_detail_and_its_code(code):
    error = refusal(code, "over there")
    assert type(error) is FAMILIES[CODES[code].family]
    assert str(error) == f"{CODES[code].sentence} (over there) [{code}]"
    assert str(refusal(code)) == f"{CODES[code].sentence} [{code}]"
    assert (error.code, error.detail, error.status) == (code, "over there", CODES[code].status)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    assert (type(again), again.code, again.detail) == (type(error), code, "over there")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_takes_no_code_of_another_family(family):
    for code, meaning in CODES.items():
        if meaning.family != family:
            with pytest.raises(RuntimeError, match=code):
                FAMILIES[family](code)


def test_there_is_no_code_outside_the_table():
    for kind in FAMILIES.values():
        with pytest.raises(KeyError):
            kind("no_such_code")
    with pytest.raises(KeyError):
        refusal("no_such_code")


def test_a_transport_error_can_say_when_to_come_again():
    assert TransportError("server_busy", retry_after_s=30).retry_after_s == 30
    assert TransportError("server_busy").retry_after_s is None
