"""Named tuples whose classes take a tenth of the time to make that `typing.NamedTuple`'s take.

`typing.NamedTuple` compiles a constructor for each class, and a device makes some thirty of them on its way to the
first answer. Here they share one. To a type checker, and to whoever uses them, they are the same.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

__all__ = ["NamedTuple"]

if TYPE_CHECKING:
    from typing import NamedTuple
else:
    _make = tuple.__new__

    class _Maker(type):
        """Takes what a class annotates for its fields, in that order, and the values beside them for defaults."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            body["__slots__"] = ()
            fields = tuple(body.get("__annotations__", ()))
            if fields:
                body["_fields"] = body["__match_args__"] = fields
                body["_defaults"] = {field: body[field] for field in fields if field in body}
                body.update({field: property(itemgetter(place)) for place, field in enumerate(fields)})
            return super().__new__(cls, name, bases, body)

    class NamedTuple(tuple, metaclass=_Maker):  # noqa: SLOT001 - its maker says so
        """A tuple whose items have names: those that the class made from it annotates."""

        def __new__(cls, *values: Any, **named: Any) -> Self:
            """Make one of values in the order of the fields, or by name, or both."""
            fields = cls._fields
            if not values and tuple(named) == fields:
                return _make(cls, named.values())
            if not named and len(values) == len(fields):
                return _make(cls, values)
            given = cls._complete(values, named)
            try:
                return _make(cls, map(given.__getitem__, fields))
            except KeyError as missing:
                raise TypeError(f"{cls.__name__} misses {missing}") from None

        @classmethod
        def _complete(cls, values: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
            placed = dict(zip(cls._fields, values, strict=False))
            given = {**cls._defaults, **placed, **named}
            twice = placed.keys() & named.keys()
            if twice or len(values) > len(placed) or len(given) > len(cls._fields):
                raise TypeError(f"{cls.__name__} takes {', '.join(cls._fields)}, each once")
            return given

        def __getnewargs__(self) -> tuple[Any, ...]:
            """What a copy is made of."""
            return tuple(self)

        def __repr__(self) -> str:
            items = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({items})"

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changed: Any) -> Self:
            return type(self)(**{**self._asdict(), **changed})
