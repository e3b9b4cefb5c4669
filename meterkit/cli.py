"""The command `meterkit`: inspect, verify and audit files. It needs no server and no network."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from meterkit import audit as auditing
from meterkit import evidence, explaining, inspection, limits, terminal
from meterkit.audit import AuditResult
from meterkit.errors import InputError, ServiceError, refusal
from meterkit.inspection import Found, Known

_FILE = click.Path(path_type=Path, dir_okay=False)
_TIMES = {
    "iat", "nbf", "exp", "expires", "time", "through", "made_at", "not_before", "not_after", "ends",
}  # fmt: skip


@click.group()
def meterkit() -> None:
    """Look into what Meterkit signs: what it says, who signed it, and whether it holds."""


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as fault:
        raise InputError("malformed_file", f"{path}: {fault.strerror}") from None
    if len(data) > bytes_max:
        raise InputError("too_large", f"{path}: at most {bytes_max} bytes")
    return data


def _known(roots: tuple[str, ...], threshold: int, beside: tuple[Path, ...]) -> Known:
    """What the caller knows: the roots, and what keyring and activation files beside lead to."""
    known = Known(roots=roots, threshold=threshold)
    for path in beside:
        inspection.inspect(_read(path, limits.FILE_BYTES_MAX), known)
    return known


_ROOT = click.option("--root", "roots", multiple=True, help="A root public key that you trust.")
_THRESHOLD = click.option("--threshold", default=1, show_default=True, help="How many roots must have signed.")
_WITH = click.option(
    "--with", "beside", multiple=True, type=_FILE, help="A keyring, reply or activation file that holds keys."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@meterkit.command()
@click.argument("path", type=_FILE)
@_ROOT
@_THRESHOLD
@_WITH
@_JSON
def inspect(
    *, path: Path, roots: tuple[str, ...], threshold: int, beside: tuple[Path, ...], as_json: bool
) -> None:
    """Say what a FILE says: a token, receipt, batch, reply, keyring or activation request."""
    found = inspection.inspect(_read(path, limits.FILE_BYTES_MAX), _known(roots, threshold, beside))
    terminal.show([asdict(each) for each in found], as_json=as_json, lines=lambda: _found_lines(found))


@meterkit.command()
@click.argument("path", type=_FILE)
@_ROOT
@_THRESHOLD
@_WITH
def verify(*, path: Path, roots: tuple[str, ...], threshold: int, beside: tuple[Path, ...]) -> None:
    """Exit with 0 only if everything in a FILE is proven, from the roots that you name."""
    found = inspection.inspect(_read(path, limits.EVIDENCE_BYTES_MAX), _known(roots, threshold, beside))
    for each in found:
        click.echo(f"{each.kind}: {_state(each)}")
    wanting = next((each for each in found if each.state != "holds"), None)
    if wanting is not None:
        raise refusal(wanting.code or "key_unknown", wanting.kind)


@meterkit.command()
@click.argument("path", type=_FILE)
@click.option(
    "--root", "pins", multiple=True, help="The vendor's root fingerprint; it proves whose invoice this is."
)
@_JSON
def audit(*, path: Path, pins: tuple[str, ...], as_json: bool) -> None:
    """Recompute an invoice from its EVIDENCE, and exit with 1 at the first difference."""
    bundle = evidence.read_zip(_read(path, limits.EVIDENCE_BYTES_MAX))
    result = auditing.recompute(bundle, set(pins) if pins else None)
    terminal.show(_audit_claims(result), as_json=as_json, lines=lambda: _audit_lines(result))
    if not result.holds:
        first = result.findings[0]
        raise ServiceError("audit_differs", f"{first.place}: {first.what}")


@meterkit.command()
@click.argument("path", type=_FILE)
@click.option("--line", "place", type=int, required=True, help="Which line, counted from 1.")
@click.option("--root", "pins", multiple=True, help="The vendor's root fingerprint.")
def explain(*, path: Path, place: int, pins: tuple[str, ...]) -> None:
    """Say how a line of an invoice comes about, from its EVIDENCE: records, price, what was billed before."""
    bundle = evidence.read_zip(_read(path, limits.EVIDENCE_BYTES_MAX))
    result = auditing.recompute(bundle, set(pins) if pins else None)
    times = terminal.local_times(result.invoice)
    for line in explaining.explain(result, place, times) if result.work else ():
        click.echo(line)
    if not result.holds:
        first = result.findings[0]
        raise ServiceError("audit_differs", f"{first.place}: {first.what}")


def _found_lines(found: list[Found]) -> list[str]:
    lines: list[str] = []
    for each in found:
        lines += [f"{each.kind}: {_state(each)}", f"  signed by {each.signer or 'nobody'}"]
        lines += [f"  {line}" for line in _says(each.says)]
    return lines


def _state(found: Found) -> str:
    why = f" [{found.code}]" if found.code else ""
    detail = f" ({found.detail})" if found.detail else ""
    return f"{found.state}{why}{detail}"


def _says(value: Any, name: str = "") -> list[str]:
    """Spell out JSON for a person, one member a line, instants as dates."""
    if isinstance(value, dict):
        return [
            line
            for member, inner in value.items()
            for line in _says(inner, f"{name}.{member}" if name else member)
        ]
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return [line for place, inner in enumerate(value) for line in _says(inner, f"{name}[{place}]")]
    if isinstance(value, int) and name.rsplit(".", 1)[-1] in _TIMES:
        return [f"{name}: {value} ({datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%SZ})"]
    return [f"{name}: {value}"]


def _audit_claims(result: AuditResult) -> dict[str, Any]:
    return {
        "invoice": result.number,
        "holds": result.holds,
        "fingerprint": result.fingerprint,
        "pinned": result.pinned,
        "lines": [
            {"place": each.place, "stated": each.stated, "computed": each.computed} for each in result.lines
        ],
        "total": result.invoice.get("total"),
        "currency": result.invoice.get("currency"),
        "findings": [asdict(each) for each in result.findings],
        "unproven": list(result.unproven),
    }


def _audit_lines(result: AuditResult) -> list[str]:
    lines = [f"invoice {result.number or '(not readable)'}"]
    for each in result.lines:
        stated, computed = _amount(each.stated), _amount(each.computed)
        mark = "=" if each.stated == each.computed else "≠"
        lines.append(f"  {each.place}: stated {stated} {mark} computed {computed}")
    if result.invoice:
        lines.append(f"  total {result.invoice.get('total')} {result.invoice.get('currency')}")
    lines += [f"  differs: {each.place}: {each.what}" for each in result.findings]
    pinned = "pinned" if result.pinned else "not proven: compare it with the vendor's own"
    lines.append(f"roots {result.fingerprint or '-'} ({pinned})")
    lines += [f"not proven: {what}" for what in result.unproven]
    lines.append(
        "the invoice is what its evidence proves" if result.holds else "the invoice DIFFERS from its evidence"
    )
    return lines


def _amount(line: Any) -> str:
    if line is None:
        return "nothing"
    return f"{line.get('amount', line.get('amount_minor'))} for {line.get('quantity')}"


def main() -> None:
    """Run `meterkit`."""
    terminal.run(meterkit, "meterkit")
