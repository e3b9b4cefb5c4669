import copy
import pickle
import typing

import pytest

from meterkit.tuples import NamedTuple


class Place(NamedTuple):
    row: int
    column: int
    name: str = "none"

    @property
    def both(self) -> tuple[int, int]:
        return self.row, self.column


class NorthernPlace(Place):
    def __new__(cls, *, row: int):
        return super().__new__(cls, row=-row, column=0)


class Usual(typing.NamedTuple):
    row: int
    column: int
    name: str = "none"


WAYS = [
    ((1, 2, "a"), {}),
    ((1, 2), {}),
    ((1,), {"column": 2}),
    ((1, 2), {"name": "a"}),
    ((), {"row": 1, "column": 2, "name": "a"}),
    ((), {"name": "a", "column": 2, "row": 1}),
    ((), {"column": 2, "row": 1}),
]
WRONG = [
    ((), {}),
    ((1,), {}),
    ((1, 2, "a", 4), {}),
    ((1, 2), {"row": 1}),
    ((1, 2, "a"), {"name": "b"}),
    ((1, 2, "a"), {"other": 1}),
    ((), {"row": 1, "column": 2, "other": 3}),
    ((1, 2), {"column": 2, "name": "a"}),
]


@pytest.mark.parametrize(("values", "named"), WAYS)
def test_it_is_made_as_the_usual_one_is(values, named):
    made, usual = Place(*values, **named), Usual(*values, **named)
    assert (made, made.row, made.column, made.name) == (usual, usual.row, usual.column, usual.name)
    assert made._asdict() == usual._asdict()
    assert repr(made) == repr(usual).replace("Usual", "Place")


@pytest.mark.parametrize(("values", "named"), WRONG)
def test_it_refuses_what_the_usual_one_refuses(values, named):
    for cls in (Place, Usual):
        with pytest.raises(TypeError):
            cls(*values, **named)


def test_it_is_a_tuple_that_nobody_changes():
    made = Place(1, 2)
    row, column, _ = made
    assert (row, column) == made.both == (1, 2)
    assert {made: "found"}[Place(row=1, column=2)] == "found"
    for name in ("row", "other"):
        with pytest.raises(AttributeError):
            setattr(made, name, 3)


def test_one_with_other_values_is_made_of_it():
    assert Place(1, 2)._replace(column=3) == (1, 3, "none")
    with pytest.raises(TypeError):
        Place(1, 2)._replace(other=3)


def test_a_class_may_make_its_own_of_it():
    made = NorthernPlace(row=1)
    assert (made, made.both, type(made)) == ((-1, 0, "none"), (-1, 0), NorthernPlace)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])  # noqa: S301
def test_a_copy_is_the_same(way):
    made = way(Place(1, 2, "a"))
    assert (made, type(made)) == (Place(1, 2, "a"), Place)


def test_what_is_matched_by_place_is_matched_by_field():
    match Place(1, 2):
        case Place(row, column):
            assert (row, column) == (1, 2)
