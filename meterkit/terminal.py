"""What the three commands share: one line for each refusal, JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from meterkit.errors import MeterkitError
from meterkit.local_times import UTC, LocalTimes


def run(command: click.Command, name: str) -> NoReturn:
    """Run a command; a refusal becomes one line on standard error and exit status 1, never a traceback."""
    try:
        status = command.main(prog_name=name, standalone_mode=False)
    except MeterkitError as refusal:
        click.echo(f"{name}: {refusal}", err=True)
        sys.exit(1)
    except click.ClickException as misuse:
        misuse.show()
        sys.exit(misuse.exit_code)
    except click.Abort:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def local_times(invoice: Mapping[str, Any]) -> LocalTimes:
    """By which clock an invoice's times are shown: its customer's; where this machine does not know it, UTC's."""
    name = invoice.get("time_zone", UTC.name)
    try:
        return LocalTimes(name=name, zone=ZoneInfo(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def show(value: Any, *, as_json: bool, lines: Callable[[], list[str]]) -> None:
    """Print a value as JSON, or as lines for a person."""
    if as_json:
        plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        click.echo(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        for line in lines():
            click.echo(line)
