"""Meterkit's shared language: tokens, ledgers, exchanges and prices, as pure values.

Nothing in this package opens a file or a socket, reads a clock, or makes up a random number; only `cli`,
the shell of the `meterkit` command, does.
"""

__version__ = "0.1.0"
