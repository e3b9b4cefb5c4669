"""A statement, put together. Pure: rows in, figures, coverage and conservation out (DESIGN §7).

Units are whole numbers of any size: what a device signs may be more than any engine adds up.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from meterkit.ledger import Total
from meterkit.licenses import Meter

Place = tuple[str, str, str, str]  # license, device, model, unit
MISSING_MAX = 200  # devices that a summary names; the lines name all


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one meter comes to. Exposure is as known now; all else is of the period.

    `granted_units` adds up the limits of the tokens issued; where one of them had none, or one that only flags,
    `granted_unlimited` says that the sum is no bound. `reported` units are those that count; those of them beyond
    a limit are `over_limit`. `unsettled`, `quarantined` and `dismissed` ones, and those `repeated` by another
    branch, stand beside them.
    """

    tokens: int = 0
    granted_units: int = 0
    granted_unlimited: bool = False
    records: int = 0
    reported: int = 0
    over_limit: int = 0
    unsettled: int = 0
    quarantined: int = 0
    dismissed: int = 0
    repeated: int = 0
    exposure: int = 0
    exposure_unbounded: bool = False
    exposure_past_grace: int = 0

    def plus(self, other: "Figures") -> "Figures":
        """The figures of both together: units are added, and what is so of one is so of both."""
        values: dict[str, Any] = {}
        for each in fields(self):
            one, two = getattr(self, each.name), getattr(other, each.name)
            values[each.name] = one or two if isinstance(one, bool) else one + two
        return Figures(**values)

    def used(self) -> tuple[int, ...]:
        """The figures that come from records, in one order."""
        aside = self.quarantined, self.dismissed, self.repeated
        return self.records, self.reported, self.over_limit, self.unsettled, *aside


NO_FIGURES = Figures()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of a device: what it runs, when it was heard of, and through when it has reported."""

    device: str
    state: str
    sdk: str
    runtime: str
    seen_at: int
    through: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One device under one license: whether it should have reported, whether it has, and its meters."""

    customer: str | None
    license_id: str
    standing: Standing
    expected: bool
    covered: bool
    meters: Mapping[Meter, Figures]

    def to_document(self) -> dict[str, Any]:
        """Show it to people."""
        known = asdict(self.standing)
        device = known.pop("device")
        return {
            "customer": self.customer,
            "license": self.license_id,
            "device": device,
            "coverage": {"expected": self.expected, "reported": self.covered, **known},
            "meters": meters_to_document(self.meters),
        }


def meters_to_document(meters: Mapping[Meter, Figures]) -> list[dict[str, Any]]:
    """Show figures meter by meter."""
    return [{"model": model, "unit": unit, **asdict(own)} for (model, unit), own in sorted(meters.items())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a store reads of some devices: figures, which (license, device) should report, and whose."""

    figures: Mapping[Place, Figures]
    expected: frozenset[tuple[str, str]]
    standings: Mapping[str, Standing]
    customers: Mapping[str, str]  # of licenses


def lines(rows: Rows, upto: int) -> Iterator[Line]:
    """Put a line together for each device and license that has a figure, or should have reported.

    A device has reported when no unit of it before the instant `upto` is still to come, as its ledger says.
    """
    meters: dict[tuple[str, str], dict[Meter, Figures]] = {pair: {} for pair in rows.expected}
    for (license_id, device, model, unit), own in rows.figures.items():
        if own != NO_FIGURES:
            meters.setdefault((license_id, device), {})[model, unit] = own
    for license_id, device in sorted(meters, key=lambda pair: (pair[1], pair[0])):
        standing = rows.standings[device]
        yield Line(
            customer=rows.customers.get(license_id),
            license_id=license_id,
            standing=standing,
            expected=(license_id, device) in rows.expected,
            covered=standing.through is not None and standing.through >= upto,
            meters=meters[license_id, device],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a meter's signed units, unsettled ones included."""

    accepted: int = 0
    quarantined: int = 0
    dismissed: int = 0
    repeated: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.accepted + self.quarantined + self.dismissed + self.repeated

    def plus(self, other: "Recorded") -> "Recorded":
        """Both together."""
        return Recorded(
            accepted=self.accepted + other.accepted,
            quarantined=self.quarantined + other.quarantined,
            dismissed=self.dismissed + other.dismissed,
            repeated=self.repeated + other.repeated,
        )


Owned = tuple[str, str, str]  # device, model, unit


def signed_units(
    tips: Iterable[Mapping[Meter, Total]], shared: Iterable[tuple[Mapping[Meter, Total], int]]
) -> dict[Meter, int]:
    """What one ledger's chains count: the totals at its branches' ends, what branches share once.

    `shared` are the totals where branches part, each with how many they part into.
    """
    found: dict[Meter, int] = {}
    for totals, times in (*((each, 1) for each in tips), *((each, 1 - count) for each, count in shared)):
        for meter, total in totals.items():
            found[meter] = found.get(meter, 0) + times * (total.units + total.unsettled)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A meter of which something else is counted than a device signed; None if its chain is unreadable."""

    device: str
    model: str
    unit: str
    signed: int | None
    recorded: Recorded

    def to_document(self) -> dict[str, Any]:
        """Show it to people."""
        return {
            "device": self.device,
            "model": self.model,
            "unit": self.unit,
            "signed": self.signed,
            **asdict(self.recorded),
        }


def compare(signed: Mapping[Owned, int | None], recorded: Mapping[Owned, Recorded]) -> list[Difference]:
    """Conservation, meter by meter (DESIGN §7): what was signed was accepted, set aside, dismissed or repeated."""
    found = []
    for owned in sorted(signed.keys() | recorded.keys()):
        device, model, unit = owned
        one, two = signed.get(owned, 0), recorded.get(owned, Recorded())
        if one != two.total:
            found.append(Difference(device=device, model=model, unit=unit, signed=one, recorded=two))
    return found


@dataclass(slots=True, kw_only=True)
class Coverage:
    """How many devices should have reported through an instant, and how many have."""

    expected: int = 0
    reported: int = 0

    def add(self, *, covered: bool) -> None:
        """Count one that should have."""
        self.expected += 1
        self.reported += covered


@dataclass(slots=True)
class Summary:
    """What the lines of a whole statement come to, added up line by line."""

    meters: dict[Meter, Figures] = field(default_factory=dict)
    licenses: dict[str, dict[Meter, Figures]] = field(default_factory=dict)
    customers: dict[str, str | None] = field(default_factory=dict)  # of licenses
    coverages: dict[str, Coverage] = field(default_factory=dict)  # of licenses
    coverage: Coverage = field(default_factory=Coverage)
    missing: list[dict[str, Any]] = field(default_factory=list)
    exceptions: dict[str, dict[str, int]] = field(default_factory=dict)
    signed: int = 0
    recorded: Recorded = Recorded()
    differences: list[Difference] = field(default_factory=list)
    _last_device: str = ""

    def add(self, line: Line) -> None:
        """Add one line; lines of one device come one after another."""
        own = self.licenses.setdefault(line.license_id, {})
        self.customers[line.license_id] = line.customer
        for meter, figures in line.meters.items():
            own[meter] = own.get(meter, NO_FIGURES).plus(figures)
            self.meters[meter] = self.meters.get(meter, NO_FIGURES).plus(figures)
        coverage = self.coverages.setdefault(line.license_id, Coverage())
        if line.expected:
            coverage.add(covered=line.covered)
            self._count_device(line)

    def _count_device(self, line: Line) -> None:
        standing = line.standing
        if standing.device == self._last_device:
            return
        self._last_device = standing.device
        self.coverage.add(covered=line.covered)
        if not line.covered and len(self.missing) < MISSING_MAX:
            self.missing.append({"license": line.license_id, **asdict(standing)})

    def add_exceptions(self, counts: Iterable[tuple[str, str, int]]) -> None:
        """Add so many exceptions of a kind and a state."""
        for kind, state, count in counts:
            own = self.exceptions.setdefault(kind, {"open": 0, "acknowledged": 0, "resolved": 0})
            own[state] = own.get(state, 0) + count

    def add_conservation(
        self, signed: Mapping[Owned, int | None], recorded: Mapping[Owned, Recorded]
    ) -> list[Difference]:
        """Compare what some devices signed with what became of it; give, and keep, what differs."""
        self.signed += sum(each or 0 for each in signed.values())
        for each in recorded.values():
            self.recorded = self.recorded.plus(each)
        found = compare(signed, recorded)
        self.differences += found[: max(0, MISSING_MAX - len(self.differences))]
        return found

    def wrong_sums(self, totals: Mapping[str, Mapping[Meter, Figures]]) -> list[str]:
        """The licenses whose own totals, added up by themselves, are not the sums of their parts."""
        return sorted(
            license_id
            for license_id in totals.keys() | self.licenses.keys()
            if _used(totals.get(license_id, {})) != _used(self.licenses.get(license_id, {}))
        )

    def to_document(self, wrong_sums: list[str]) -> dict[str, Any]:
        """Show it to people; `wrong_sums` are the licenses whose totals are not the sums of their parts."""
        return {
            "totals": meters_to_document(self.meters),
            "licenses": [
                {
                    "customer": self.customers[license_id],
                    "license": license_id,
                    "coverage": asdict(self.coverages[license_id]),
                    "meters": meters_to_document(self.licenses[license_id]),
                }
                for license_id in sorted(self.licenses)
            ],
            "coverage": {**asdict(self.coverage), "missing": self.missing},
            "exceptions": [{"kind": kind, **states} for kind, states in sorted(self.exceptions.items())],
            "conservation": {
                "signed": self.signed,
                **asdict(self.recorded),
                "holds": not self.differences and not wrong_sums,
                "differences": [each.to_document() for each in self.differences],
                "wrong_sums": wrong_sums,
            },
        }


def _used(meters: Mapping[Meter, Figures]) -> dict[Meter, tuple[int, ...]]:
    return {meter: own.used() for meter, own in meters.items() if any(own.used())}
