"""How a device joins, what it then holds, and how that is renewed."""
