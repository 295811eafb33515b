#!/bin/sh
# Installs a client on a Jetson around JetPack's own torch and numpy, which stay untouched. As root:
#   install.sh NAME [SOURCE]
# NAME is the client's; SOURCE a checkout or a wheel, default: the checkout that this file lies in.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
name=${1:?usage: install.sh NAME [SOURCE]}
source=${2:-$(cd "$here/../.." && pwd)}
target=${MOTLEY_TARGET:-/opt/motley}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed: JetPack 6 has it, JetPack 5 (Python 3.8) does not"
python3 -c 'import venv, ensurepip' 2>/dev/null || apt-get install -y python3-venv

state() { # INTERPRETER: version and place of torch and numpy
    "$1" -c 'import numpy, torch; print(torch.__version__, torch.__file__, numpy.__version__, numpy.__file__)'
}
before=$(state python3) ||
    fail "python3 finds no torch; install the wheel that NVIDIA offers for this JetPack first"
python3 -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 0))' ||
    fail "torch 2.0 or newer is needed; this JetPack has: $before"

[ ! -e "$target" ] || fail "$target is there already; to install anew, remove it first"
held=$(mktemp)
installed=no
finish() {
    rm -f "$held"
    [ "$installed" = yes ] || rm -rf "$target"
}
trap finish EXIT
python3 -m venv --system-site-packages "$target"
# The package without its extra `client`, which names nothing but torch; numpy is held where it is.
python3 -c 'import numpy; print(f"numpy=={numpy.__version__}")' >"$held"
"$target/bin/python" -m pip install --constraint "$held" "$source"

after=$(state "$target/bin/python") || after="none that can be imported"
[ "$before" = "$after" ] ||
    fail "torch or numpy would be another one: $after instead of $before; $target was removed again"
installed=yes
"$target/bin/python" -c 'import torch; print("torch", torch.__version__, "sees an accelerator:", torch.cuda.is_available())'
"$here/../systemd/install.sh" client "$name" --gpu
