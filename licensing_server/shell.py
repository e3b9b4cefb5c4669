"""What every command of `meterkit-server` shares: the server it works on, how it prints, how it refuses."""

import datetime as dt
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from licensing_server import directory, migrating, pages, settings
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from meterkit import limits
from meterkit.canonical import from_bytes
from meterkit.errors import InputError, MeterkitError

PROGRAM = "meterkit-server"
WHO = "command line"  # who decides, where a decision names them
_WIDE = 200  # columns of a table that no terminal cuts

Function = TypeVar("Function", bound=Callable[..., Any])


class Refused(click.ClickException):
    """A refusal, printed as one line: the sentence, where, and the code."""

    exit_code = 1

    def __init__(self, error: MeterkitError) -> None:
        super().__init__(str(error))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line on standard error."""
        click.echo(f"{PROGRAM}: {self.message}", file=file or sys.stderr)


@dataclass(slots=True)
class Shell:
    """Where a command works, and how it prints."""

    directory: str | None = None
    as_json: bool = False

    def server(self) -> Server:
        """Open the server's directory; its database must have this version's schema."""
        server = self.open()
        migrating.check(server)
        return server

    def open(self) -> Server:
        """Open the server's directory, whatever its database is like. Its connections end with the command."""
        server = directory.open_server(settings.read(os.environ, self.directory))
        click.get_current_context().call_on_close(server.engine.dispose)
        return server

    def show(self, document: Document) -> None:
        """Print one thing: as JSON, or a line for each member."""
        if self.as_json:
            return click.echo(json.dumps(document, ensure_ascii=False, indent=2))
        width = max((len(name) for name in document), default=0)
        for name, value in document.items():
            click.echo(f"{name:<{width}}  {_plain(name, value)}")
        return None

    def show_list(self, document: Document, columns: Sequence[str]) -> None:
        """Print a list: as JSON, or as a table of these columns."""
        if self.as_json:
            return click.echo(json.dumps(document, ensure_ascii=False, indent=2))
        console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else _WIDE)
        table = Table(*columns, box=None, header_style="bold", pad_edge=False)
        for item in document["items"]:
            table.add_row(*(Text(_plain(name, item.get(name))) for name in columns))  # no text is markup
        console.print(table)
        if document.get("next"):
            click.echo(f"more: --cursor {document['next']}", err=True)
        return None


def _plain(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name.endswith("_at") and isinstance(value, int):
        return dt.datetime.fromtimestamp(value, tz=dt.UTC).isoformat().replace("+00:00", "Z")
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        context.ensure_object(Shell).as_json = True


def _set_directory(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        context.ensure_object(Shell).directory = value


def _shared_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--json", "as_json"], is_flag=True, expose_value=False, callback=_set_json, help="Print JSON."
        ),
        click.Option(
            ["--directory"],
            expose_value=False,
            callback=_set_directory,
            help=f"The server's directory; else {settings.DIRECTORY}.",
        ),
    ]


class Command(click.Command):
    """A command that also takes `--json` and `--directory`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _shared_options()


class Group(click.Group):
    """A noun: its commands refuse in one line."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a refusal becomes one line and exit status 1."""
        try:
            return super().invoke(ctx)
        except MeterkitError as error:
            raise Refused(error) from None


class CommandGroup(Group):
    """A noun that is a command, too, where none of its commands is named."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "invoke_without_command": True})
        self.params += _shared_options()


Group.group_class = Group
pass_shell = click.make_pass_decorator(Shell, ensure=True)


def progress() -> dict[str, Any]:
    """How a progress bar is shown: to a person at a terminal, never among the output."""
    return {"file": sys.stderr, "hidden": not sys.stderr.isatty()}


def noun(name: str, help_text: str) -> Group:
    """Make the group of a noun's commands."""
    return Group(name, help=help_text)


def paged(function: Function) -> Function:
    """Let a command that lists take `--limit` and `--cursor`."""
    limit = click.option(
        "--limit", type=click.IntRange(1, pages.LIMIT_MAX), default=pages.LIMIT_DEFAULT, help="Items at most."
    )
    return limit(click.option("--cursor", default=None, help="What the page before printed.")(function))


def to_page(cursor: str | None, limit: int) -> Page:
    """Read what `paged` has added."""
    return pages.read_page(cursor=cursor, limit=limit)


def _instant(value: str) -> int:
    """Read an instant: seconds UTC, or ISO 8601 with a zone, as 2026-03-01T00:00:00Z."""
    if value.isascii() and value.isdigit():
        seconds = int(value[:20])
    else:
        try:
            read = dt.datetime.fromisoformat(value)
        except ValueError:
            raise click.BadParameter("neither seconds UTC nor ISO 8601") from None
        if read.tzinfo is None:
            raise click.BadParameter("it needs a zone, as in 2026-03-01T00:00:00Z")
        seconds = int(read.timestamp())
    if not 0 <= seconds <= limits.TIME_MAX_S:
        raise click.BadParameter("out of range")
    return seconds


INSTANT: Callable[[str], int] = _instant


def read_json_file(file: IO[bytes]) -> Any:
    """Read a JSON file strictly, as the API reads a body."""
    try:
        return from_bytes(file.read(limits.BODY_BYTES_MAX + 1), bytes_max=limits.BODY_BYTES_MAX)
    except InputError as error:
        raise Refused(error) from None
