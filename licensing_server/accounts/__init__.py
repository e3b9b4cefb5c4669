"""Where customers stand: taxes, prepaid credits, balances, and the journal beneath."""
