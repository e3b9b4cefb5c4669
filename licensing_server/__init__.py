"""The I/O of one vendor: licenses, devices, usage and invoices over HTTP and the command line."""
