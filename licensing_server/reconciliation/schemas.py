"""What is asked of reconciliation: nothing has a body; the parameters are in `routes`."""
