"""Usage as devices signed it: exchange, exceptions, sums."""
