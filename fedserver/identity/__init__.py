"""The server's authority, who holds which certificate, and join tokens."""
