"""What a vendor sells: products, their models, and plans."""
