"""Who is who: keys, certificates, join tokens. Needs `cryptography`; imported when it is used."""
