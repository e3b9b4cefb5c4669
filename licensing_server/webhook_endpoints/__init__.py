"""Webhooks: telling the vendor's own systems what has happened, signed as Standard Webhooks says."""
