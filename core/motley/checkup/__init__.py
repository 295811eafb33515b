"""What the doctors of client and server have in common: findings, and how they are made."""
