"""Invoices: what is owed, by which records, and the proof of it."""
