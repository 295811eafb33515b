"""Builds wheel and sdist, installs them into clean environments, runs them, and weighs them.

    deploy/check/packaging.py              the client: torch is left out, sizes are of what is left
    deploy/check/packaging.py --torch torch==2.13.0     with it

`motley-fl[client]` names torch besides the package's own requirements and nothing else, which is
checked in the wheel; so without --torch the package alone is installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MB = 80
"""What the client may take besides torch and numpy; torch's own requirements count as torch."""
NOT_OURS = ("numpy", "numpy.libs", "pip", "setuptools", "pkg_resources", "_distutils_hack")
TORCH = ("torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe",
         "fsspec", "filelock", "isympy.py", "triton", "nvidia")  # fmt: skip
SERVER_ONLY = {"sqlalchemy", "alembic", "matplotlib", "grpcio-health-checking", "scipy"}


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a program; end the check with its words when it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        sys.exit(f"packaging.py: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(folder: Path) -> Path:
    """Make a clean environment; return the folder of its programs."""
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin"


def build(folder: Path) -> tuple[Path, Path]:
    """Build both distributions; return (wheel, sdist)."""
    programs = environment(folder / "build")
    run(programs / "pip", "install", "--quiet", "build")
    run(programs / "python", "-m", "build", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path) -> None:
    """Check what the wheel installs, and that `client` asks for nothing that only servers need."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        found = Parser().parsestr(archive.read(metadata).decode())
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"motley", "fedserver", "fedclient"}, tops
    required = found.get_all("Requires-Dist") or []
    client = [line for line in required if "extra ==" not in line]
    client += [line for line in required if "extra == 'client'" in line]
    assert sum("extra ==" in line for line in client) == 1, client
    assert not any(line.lower().startswith(tuple(SERVER_ONLY)) for line in client), client


def sizes(programs: Path) -> dict[str, float]:
    """Return MB of ours, of numpy and of torch with what it requires."""
    (site,) = programs.parent.glob("lib/python3*/site-packages")
    totals = {"client": 0.0, "numpy": 0.0, "torch": 0.0}
    for path in site.iterdir():
        name = path.name.split("-")[0] if path.name.endswith(".dist-info") else path.name
        size = sum(f.lstat().st_size for f in (path.rglob("*") if path.is_dir() else [path])) / 1e6
        if name.lower() in TORCH or name.lower().startswith("nvidia"):
            totals["torch"] += size
        elif name.lower().startswith("numpy"):
            totals["numpy"] += size
        elif name not in NOT_OURS:
            totals["client"] += size
    return {name: round(size, 1) for name, size in totals.items()}


def main() -> None:
    """Read the command line and check both distributions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch", default="", help="requirement to install first")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel, sdist = build(folder)
        check_contents(wheel)
        facts: dict[str, object] = {
            path.name: f"{path.stat().st_size / 1e6:.2f} MB" for path in (wheel, sdist)
        }
        programs = environment(folder / "client")
        if options.torch:
            run(programs / "pip", "install", "--quiet", "--no-cache-dir", options.torch)
        run(programs / "pip", "install", "--quiet", f"{wheel}{'[client]' * bool(options.torch)}")
        run(programs / "fedclient", "--help", cwd=folder)
        facts["doctor"] = json.loads(doctor(programs, folder, complete=bool(options.torch)))
        facts["installed_mb"] = taken = sizes(programs)
        assert taken["client"] < LIMIT_MB, taken
        source = environment(folder / "sdist")
        run(source / "pip", "install", "--quiet", "--no-deps", sdist)
        run(source / "python", "-c", "import motley, fedclient, fedserver", cwd=folder)
        print(json.dumps(facts, indent=1))


def doctor(programs: Path, folder: Path, *, complete: bool) -> str:
    """Return what `fedclient doctor` found: that nobody joined, and torch where it is missing."""
    command = [programs / "fedclient", "doctor", "--json", "--state", folder / "state"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder)
    found = json.loads(done.stdout or "{}").get("findings", [])
    problems = {finding["what"] for finding in found if finding["verdict"] == "problem"}
    expected = {"certificate"} if complete else {"certificate", "torch"}
    assert problems == expected, done.stdout + done.stderr
    return done.stdout


if __name__ == "__main__":
    main()
