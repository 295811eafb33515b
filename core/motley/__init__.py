"""The training core that the Motley server and its clients share."""

__version__ = "0.1.0"
