#!/data/data/com.termux/files/usr/bin/bash
# Installs a client in Termux, with Termux's own python, numpy, torch, grpcio and cryptography.
#   install.sh NAME [SOURCE]
# NAME is the client's; SOURCE a checkout or a wheel, default: the checkout that this file lies in.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=${1:?usage: install.sh NAME [SOURCE]}
source=${2:-$(cd "$here/../.." && pwd)}
settings=$HOME/.config/motley

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

[[ -n ${TERMUX_VERSION:-} ]] || fail "this is not Termux"
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] || fail "'$name' cannot be a client's name"
[[ $(uname -m) == aarch64 || $(uname -m) == x86_64 ]] || fail "64 bits are needed; this is $(uname -m)"

# Wheels of the package index are made for glibc and do not load here: the compiled parts come
# from Termux, and pip fills up with what is plain Python.
mapfile -t packages < <(sed -n 's/^\([a-z].*\) .*/\1/p' "$here/versions.txt")
pkg install -y python-pip termux-api "${packages[@]}"
while read -r package version; do
    [[ $package == \#* || -z $package ]] && continue
    found=$(dpkg-query -W -f '${Version}' "$package")
    [[ $found == "$version" ]] || echo "$package is $found; this was written for $version"
done <"$here/versions.txt"

held=$(mktemp)
trap 'rm -f "$held"' EXIT
# pip keeps what Termux brought: it would try to build these on the phone.
python - >"$held" <<'PYTHON'
from importlib.metadata import version

for name in ("numpy", "torch", "grpcio", "cryptography", "pydantic-core"):
    print(f"{name}=={version(name)}")
PYTHON
python -m venv --system-site-packages "$HOME/motley"
"$HOME/motley/bin/python" -m pip install --constraint "$held" "$source"
"$HOME/motley/bin/python" -c 'import torch, grpc; print("torch", torch.__version__, "grpcio", grpc.__version__)'

mkdir -p "$settings" "$HOME/.termux/boot"
if [[ ! -e $settings/client.env ]]; then
    {
        echo "# Read by $here/run.sh"
        printf 'NAME=%q\n' "$name"
        echo "DATA='digits?clients=2&client=0'"
        echo "OPTIONS='--threads 2'"
    } >"$settings/client.env"
fi
install -m 0755 "$here/run.sh" "$HOME/motley/bin/motley-run"
install -m 0755 "$here/boot.sh" "$HOME/.termux/boot/motley"
echo "settings    $settings/client.env"
echo "join        ~/motley/bin/fedclient join TOKEN --name $name"
echo "start       ~/motley/bin/motley-run"
