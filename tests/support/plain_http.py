"""Requests to servers on loopback, each on a connection of its own, without TLS."""

import ssl

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to read whom to trust takes longer than most requests
