"""API keys: who may do what over HTTP."""
