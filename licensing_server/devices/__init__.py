"""Devices: activation, tokens, the positions of their ledgers, revocation."""
