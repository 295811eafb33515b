"""Shared by all tests: where real data lies, and folders whose modules tests import."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("server", "integration", "simulate"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
