"""Whom a vendor sells to."""
