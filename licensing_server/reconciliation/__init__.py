"""Reconciliation: what was granted, what was reported, what may still come, and whether it all adds up."""
