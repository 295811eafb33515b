#!/bin/bash
# Follows docs/tutorial.md on three machines that are network namespaces, each with a clone, an
# environment and an address of its own: its commands as they stand there. As root:
#   deploy/check/three-machines.sh WORK
# WORK: new folder with a short path. PYTHON runs the test: an interpreter that has the extra `dev`.
# What is committed is cloned. PIP_* is passed on.
set -euo pipefail
work=${1:?usage: three-machines.sh WORK}
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
machines=(server pi desk)

for name in "${machines[@]}"; do
    mkdir -p "$work/$name"
    extra=client
    [[ $name == server ]] && extra=server
    (
        cd "$work/$name"
        git clone --quiet "$root" motley && cd motley
        # shellcheck disable=SC1091
        python3 -m venv .venv && . .venv/bin/activate
        pip install --quiet ".[$extra,digits]"
    )
    echo "$name: $("$work/$name/motley/.venv/bin/python" -c 'import torch; print("torch", torch.__version__)'), $(du -sm "$work/$name" | cut -f 1) MB"
done

finish() {
    for name in "${machines[@]}"; do
        ip netns del "motley-$name" 2>/dev/null || true
    done
}
trap finish EXIT
for name in "${machines[@]}"; do
    ip netns add "motley-$name"
    ip -n "motley-$name" link set lo up
done
# The server's machine holds the switch.
ip -n motley-server link add switch type bridge
ip -n motley-server address add 192.168.7.1/24 dev switch
ip -n motley-server link set switch up
number=1
for name in pi desk; do
    number=$((number + 1))
    ip -n motley-server link add "$name" type veth peer name eth0 netns "motley-$name"
    ip -n motley-server link set "$name" master switch up
    ip -n "motley-$name" address add "192.168.7.$number/24" dev eth0
    ip -n "motley-$name" link set eth0 up
done
cd "$root"
ip netns exec motley-server env MOTLEY_THREE_MACHINES="$work" "$python" -m pytest -rs tests/integration/test_tutorial.py
