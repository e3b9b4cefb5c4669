"""Meterkit's shared language: tokens, ledgers, exchanges and prices, as pure values.

Nothing in this package opens a file or a socket, reads a clock, or makes up a random number; only `cli`,
the shell of the `meterkit` command, does.

A kind of value that a device meets on its way to the first answer is a named tuple, which a process makes seven
times as fast as a dataclass; one that holds a secret never is, and the others are frozen dataclasses.
"""

from __future__ import annotations

__version__ = "0.1.0"
