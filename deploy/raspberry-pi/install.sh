#!/bin/sh
# Installs a client on a Raspberry Pi with a 64-bit system. As root:
#   install.sh NAME [SOURCE]
# NAME is the client's; SOURCE a checkout or a wheel, default: the checkout that this file lies in.
# MOTLEY_TORCH is the torch to install: from 2.11 on the index's wheels for ARM bring CUDA along.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
name=${1:?usage: install.sh NAME [SOURCE]}
source=${2:-$(cd "$here/../.." && pwd)}
target=${MOTLEY_TARGET:-/opt/motley}
torch=${MOTLEY_TORCH:-torch>=2.0,<2.11}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# A 64-bit kernel may run a 32-bit system, for which there is no torch.
[ "$(uname -m) $(getconf LONG_BIT)" = "aarch64 64" ] ||
    fail "torch needs the 64-bit Raspberry Pi OS; this is $(uname -m) with $(getconf LONG_BIT) bits"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed: Raspberry Pi OS 12 (bookworm) has it"
python3 -c 'import venv, ensurepip' 2>/dev/null || {
    apt-get update
    apt-get install -y python3-venv
}

free=$(df --output=avail -k "$(dirname "$target")" | tail -n 1)
[ "$free" -ge 1500000 ] || fail "$target needs 1.5 GB, and $((free / 1000)) MB are free"
memory=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
[ "$memory" -ge 900000 ] ||
    echo "install.sh: $((memory / 1000)) MB of memory: torch alone takes 400; give it --memory-limit and swap" >&2

python3 -m venv "$target"
# The wheels of the temporary folder may not fit a small /tmp in memory.
TMPDIR=$(mktemp -d -p "$target")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
"$target/bin/python" -m pip install --no-cache-dir "$torch" "${source}[client]"
"$target/bin/python" -c 'import torch; print("torch", torch.__version__)'
"$here/../systemd/install.sh" client "$name"
