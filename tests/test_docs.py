"""What the documents tell people to type exists, and what they link to is there."""

import re
import shlex
from pathlib import Path

import click
import pytest

import device_sdk.cli
import meterkit.cli
from licensing_server import cli as server

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, ...]]:
    """The commands and subcommands that the documents name, without their arguments."""
    found = set()
    for document in DOCUMENTS:
        for line in re.findall(r"^(meterkit(?:-\w+)? .*)$", document.read_text("utf-8"), re.MULTILINE):
            words = shlex.split(line.split("#")[0])
            plain = [word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word)]
            found.add((words[0], *plain[:2]))
    return sorted(found)


PROGRAMS = {
    "meterkit": meterkit.cli.meterkit,
    "meterkit-device": device_sdk.cli.device,
    "meterkit-server": server.cli,
}


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_named_in_the_documents_exists(command):
    at = PROGRAMS[command[0]]
    for word in command[1:]:
        if not isinstance(at, click.Group):
            return  # what follows are arguments
        assert word in at.commands, f"{' '.join(command)}: no {word}"
        at = at.commands[word]
    assert not isinstance(at, click.Group) or at.invoke_without_command, (
        f"{' '.join(command)} is only half a command"
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
        assert link.startswith("http") or (document.parent / link).exists(), link
