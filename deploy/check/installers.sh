#!/bin/bash
# Runs the installers of Jetson, Raspberry Pi and Termux in copies of a Debian tree, with stand-ins
# for the machine and for its packages; pip is the real one. As root:
#   debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm TREE
#   deploy/check/installers.sh TREE WORK [jetson|raspberry-pi|android ...]
# BIND: host folders to show in the trees, read-only; PIP_* is passed on; TORCH: the Pi's, for this processor.
set -euo pipefail
tree=${1:?usage: installers.sh TREE WORK [NAME ...]}
work=${2:?usage: installers.sh TREE WORK [NAME ...]}
shift 2
root=$(cd "$(dirname "$0")/../.." && pwd)
if [[ -z ${MOTLEY_UNSHARED:-} ]]; then
    MOTLEY_UNSHARED=1 exec unshare --mount --propagation private "$0" "$tree" "$work" "$@"
fi
[[ $# -gt 0 ]] || set -- jetson raspberry-pi android

copy() { # NAME: a tree of its own, with the source in /source and stand-ins first in PATH
    here=$work/$1
    mkdir -p "$work"
    cp -a "$tree" "$here"
    mount --rbind /proc "$here/proc"
    mount --rbind /dev "$here/dev"
    for folder in ${BIND:-}; do
        mkdir -p "$here/$folder"
        mount --bind "$folder" "$here/$folder"
        # Packages write where they like, as root; the host's files are not theirs to change.
        mount -o remount,bind,ro "$here/$folder"
    done
    cp /etc/resolv.conf "$here/etc/resolv.conf"
    mkdir -p "$here/source" "$here/stand-ins" "$here/home"
    (cd "$root" && tar -c pyproject.toml README.md LICENSE core fedserver fedclient deploy) | tar -x -C "$here/source"
    stand_in systemctl 'echo "systemctl $*"'
    stand_in systemd-sysusers 'echo "systemd-sysusers $*"'
    stand_in apt-get 'echo "apt-get $*"'
}

stand_in() { # NAME BODY
    printf '#!/bin/sh\n%s\n' "$2" >"$here/stand-ins/$1"
    chmod +x "$here/stand-ins/$1"
}

inside() {
    local passed=()
    mapfile -t passed < <(env | grep '^PIP_' || true)
    chroot "$here" /usr/bin/env -i PATH=/stand-ins:/usr/sbin:/usr/bin:/sbin:/bin HOME=/home "${passed[@]}" "$@"
}

package() { # SITE NAME VERSION: a module that stands in for a compiled package
    mkdir -p "$1/$2" "$1/$2-$3.dist-info"
    # shellcheck disable=SC2016
    printf '__version__ = "%s"\n\nclass cuda:\n    is_available = staticmethod(lambda: True)\n' "$3" >"$1/$2/__init__.py"
    printf 'Metadata-Version: 2.1\nName: %s\nVersion: %s\n' "$2" "$3" >"$1/$2-$3.dist-info/METADATA"
    : >"$1/$2-$3.dist-info/RECORD"
    echo stand-in >"$1/$2-$3.dist-info/INSTALLER"
}

check_jetson() {
    copy jetson
    local site=$here/usr/lib/python3/dist-packages
    package "$site" torch 2.5.0a0+nv24.8
    package "$site" numpy 1.26.4
    inside /source/deploy/jetson/install.sh jetson-1
    inside /opt/motley/bin/fedclient --version
    [[ ! -e $here/opt/motley/lib/python3.11/site-packages/torch ]]
    [[ ! -e $here/opt/motley/lib/python3.11/site-packages/numpy ]]
    [[ -e $here/etc/systemd/system/fedclient@.service.d/gpu.conf ]]
    # An environment that brings another torch is taken away again.
    rm -rf "$here/opt/motley"
    package "$here/source/other" torch 2.13.0
    cat >"$here/source/other/pyproject.toml" <<'OTHER'
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "torch"
version = "2.13.0"
OTHER
    sed -i 's|^dependencies = \[|&"torch @ file:///source/other",|' "$here/source/pyproject.toml"
    printf '[tool.hatch.metadata]\nallow-direct-references = true\n' >>"$here/source/pyproject.toml"
    if inside /source/deploy/jetson/install.sh jetson-1 2>&1 | tee "$work/refusal"; then
        echo "installers.sh: JetPack's torch was replaced" >&2
        exit 1
    fi
    grep -q 'torch or numpy would be another one: 2.13.0' "$work/refusal"
    [[ ! -e $here/opt/motley ]]
}

check_raspberry-pi() {
    copy raspberry-pi
    stand_in uname 'echo aarch64'
    # The tree is no ARM: the wheel that is here for it stands in for the one that a Pi gets.
    inside MOTLEY_TORCH="${TORCH:-torch<2.14}" /source/deploy/raspberry-pi/install.sh kitchen-pi
    inside /opt/motley/bin/fedclient --version
    [[ -e $here/etc/motley/kitchen-pi.env ]]
}

check_android() {
    copy android
    stand_in uname 'echo aarch64'
    stand_in pkg 'echo "pkg $*"'
    # shellcheck disable=SC2016
    stand_in dpkg-query 'sed -n "s/^$4 //p" /source/deploy/android/versions.txt | sed s/2.1.2/2.2.0/'
    ln -s /usr/bin/python3 "$here/stand-ins/python"
    # What Termux brings compiled, pip brings here; torch is not imported, a module stands in.
    inside python3 -m venv /tmp/pip
    inside /tmp/pip/bin/pip install --quiet --target /usr/lib/python3/dist-packages numpy grpcio cryptography pydantic
    package "$here/usr/lib/python3/dist-packages" torch 2.5.0
    inside TERMUX_VERSION=0.118 bash /source/deploy/android/install.sh phone-1
    inside /home/motley/bin/fedclient --version
    [[ -x $here/home/.termux/boot/motley && -x $here/home/motley/bin/motley-run ]]
    ! ls -d "$here"/home/motley/lib/python3.11/site-packages/{numpy,grpc,torch,cryptography,pydantic_core} 2>/dev/null
}

for name in "$@"; do
    echo "=== $name"
    "check_$name"
    echo "=== $name: all as it should be"
done
