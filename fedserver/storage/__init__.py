"""What the server keeps: records in SQLite, payload bytes in files."""
