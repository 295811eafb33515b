"""A virtual environment with Flower, apart from this project's own: each pins what it likes.

    python benchmarks/flower_env.py FOLDER

Benchmarks that compare with Flower make it on request (`--flower-env FOLDER`), once: a folder that
has what is wanted is used as it is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

FLOWER = "flwr[simulation]>=1.41,<1.42"
"""The newest that installs from PyPI, with Ray."""
TORCH = "torch<2.14"
"""What simulated clients train with; the bound is this project's own."""


def prepare(folder: Path, packages: Sequence[str] = (FLOWER,)) -> Path:
    """Return the Python of a virtual environment that holds `packages`, made where it is missing.

    Raises:
        subprocess.CalledProcessError: pip could not install them; it has said why.
    """
    python = folder / "bin" / "python"
    done = folder / "installed"
    here = set(done.read_text().splitlines()) if done.exists() else set()
    if not here.issuperset(packages):
        if not python.exists():
            venv.create(folder, with_pip=True)
        print(f"installing {', '.join(packages)} into {folder}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        done.write_text("\n".join(sorted(here.union(packages))) + "\n")
    return python


def variables(folder: Path) -> dict[str, str]:
    """Return the environment of a process of Flower's: this process's, and the quick settings.

    No telemetry, a home of its own inside the folder, and the folder's programs first on the path.
    """
    return {
        **os.environ,
        "PATH": f"{folder.absolute() / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder.absolute() / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(prepare(parser.parse_args().folder, (FLOWER, TORCH)))


if __name__ == "__main__":
    main()
