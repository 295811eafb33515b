"""Executes the steps of a container file in a Debian tree, where no container engine runs. As root.

    debootstrap --variant=minbase bookworm /tmp/base
    deploy/check/container.py deploy/container/client.Dockerfile --base /tmp/base \\
        --work /tmp/work --try 'fedclient --version'

and of the server, which then serves once in its tree:

    deploy/check/container.py deploy/container/server.Dockerfile --base /tmp/base \\
        --work /tmp/work --try 'MOTLEY_ADDRESS=localhost serve.sh --listen 127.0.0.1:0 & \\
        until fedserver runs --json; do sleep 1; done; tokens.sh /run/motley-tokens phone && \\
        kill $! && wait $!'

Each stage is a copy of the base; RUN goes through chroot, as the stage's user, and an instruction
that is not known ends the check. What is left is the image's tree under --work; its size is
printed, and each --try is run in it as the image's user. Mounts live in a name space of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
"""By its path: it would be looked for in the PATH of the image."""
NOTED = {"EXPOSE", "VOLUME", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@dataclass
class Stage:
    """One FROM and what follows it."""

    tree: Path
    environment: dict[str, str]
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    noted: dict[str, str] = field(default_factory=dict)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return (instruction, the rest) for each line, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    found = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, _, rest in found]


def fill_in(text: str, values: dict[str, str]) -> str:
    """Put values in place of `${NAME}` and `$NAME`, as COPY, FROM and ENV do."""
    return re.sub(r"\$\{?(\w+)\}?", lambda name: values.get(name[1], ""), text)


class Check:
    """Carries a container file out."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.given = dict(pair.split("=", 1) for pair in options.build_arg)
        self.outer: dict[str, str] = {}
        self.stages: list[Stage] = []
        self.names: dict[str, Stage] = {}

    def carry_out(self, path: Path) -> Stage:
        """Execute every instruction; return the last stage."""
        for word, rest in instructions(path):
            print(f"--- {word} {rest}", flush=True)
            if word in NOTED:
                self.stages[-1].noted[word] = rest
            else:
                getattr(self, f"do_{word.lower()}")(rest)
        return self.stages[-1]

    def do_from(self, rest: str) -> None:  # noqa: D102
        name = re.search(r" AS (\w+)$", rest, flags=re.I)
        tree = self.options.work / (name[1] if name else f"stage{len(self.stages)}")
        subprocess.run(["cp", "-a", self.options.base, tree], check=True)
        for folder in ("proc", "dev"):
            subprocess.run(["mount", "--rbind", f"/{folder}", tree / folder], check=True)
        for folder in map(Path, self.options.bind):
            target = tree / folder.relative_to("/")
            target.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", folder, target], check=True)
            # Packages write where they like, as root; the host's files are not theirs to change.
            subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
        passed = {name: os.environ[name] for name in self.options.env if name in os.environ}
        stage = Stage(tree=tree, environment={"PATH": os.environ["PATH"], **passed})
        self.stages.append(stage)
        if name:
            self.names[name[1]] = stage

    def do_arg(self, rest: str) -> None:  # noqa: D102
        name, _, default = rest.partition("=")
        value = self.given.get(name, default.strip('"'))
        (self.stages[-1].arguments if self.stages else self.outer)[name] = value

    def do_env(self, rest: str) -> None:  # noqa: D102
        stage = self.stages[-1]
        pairs = (tuple(word.split("=", 1)) for word in shlex.split(fill_in(rest, stage.arguments)))
        stage.environment.update(dict(pairs))

    def do_user(self, rest: str) -> None:  # noqa: D102
        self.stages[-1].user = rest

    def do_workdir(self, rest: str) -> None:  # noqa: D102
        stage = self.stages[-1]
        stage.folder = rest
        (stage.tree / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def do_copy(self, rest: str) -> None:  # noqa: D102
        stage, source = self.stages[-1], ROOT
        words = shlex.split(rest)
        if words[0].startswith("--from="):
            source = self.names[words.pop(0).removeprefix("--from=")].tree
        *names, to = words
        target = stage.tree / os.path.join(stage.folder, to).lstrip("/")
        for name in names:
            found = source / name.lstrip("/")
            into = target if found.is_dir() or not to.endswith("/") else target / found.name
            into.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", "-T", "--no-preserve=ownership", found, into], check=True)

    def do_run(self, rest: str) -> None:  # noqa: D102
        self.run(self.stages[-1], rest)

    def run(self, stage: Stage, command: str) -> None:
        """Run a shell command in a stage's tree, as its user."""
        environment = {**stage.arguments, **stage.environment}
        chroot = [CHROOT, f"--userspec={stage.user}", stage.tree]
        inside = ["/bin/sh", "-c", f"cd {stage.folder} && {command}"]
        done = subprocess.run([*chroot, *inside], env=environment)
        if done.returncode:
            sys.exit(f"container.py: status {done.returncode} of {command}")


def size(tree: Path) -> int:
    """Return the MB of a tree's own files, without what is mounted in it."""
    done = subprocess.run(["du", "-sxm", tree], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def main() -> None:
    """Read the command line and carry the file out."""
    parser = argparse.ArgumentParser(description="Executes a container file's steps in a tree.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="tree of the base image")
    parser.add_argument("--work", type=Path, required=True, help="new folder for the stages")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--bind", action="append", default=[], help="host folder to show in the trees, read-only"
    )
    parser.add_argument("--env", action="append", default=[], help="variable to pass on")
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="COMMAND")
    options = parser.parse_args()
    if not os.environ.get("MOTLEY_UNSHARED"):
        os.environ["MOTLEY_UNSHARED"] = "1"
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        os.execvp(command[0], command)
    options.work.mkdir(parents=True)
    check = Check(options)
    stage = check.carry_out(options.file)
    for command in options.tries:
        print(f"--- try {command}", flush=True)
        check.run(stage, command)
    base, whole = size(options.base), size(stage.tree)
    facts = {"base_mb": base, "image_mb": whole, "added_mb": whole - base, "user": stage.user}
    print(json.dumps({**facts, **stage.noted}))


if __name__ == "__main__":
    main()
