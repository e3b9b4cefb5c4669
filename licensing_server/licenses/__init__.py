"""What is granted to a customer, and the codes that activate it."""
