#!/bin/bash
# One round of a client on arm64, by qemu's user emulation, with a server outside of it. As root:
#   debootstrap --arch=arm64 --variant=minbase --include=python3 bookworm TREE
#   pip="pip install --target SITE --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
#       --implementation cp --python-version 3.11 --only-binary=:all:"
#   $pip --no-deps torch==2.9.1     # pip would ask for what torch wants on this processor: CUDA
#   $pip numpy grpcio protobuf cryptography pydantic rich structlog typer scikit-learn filelock \
#       typing_extensions sympy networkx jinja2 fsspec
#   deploy/check/arm64.sh TREE SITE
# Needs qemu-user-static and binfmt_misc; the checkout is shown as it lies: change nothing in it meanwhile. PYTHON runs the server: an interpreter that has it installed.
set -euo pipefail
tree=${1:?usage: arm64.sh TREE SITE}
site=${2:?usage: arm64.sh TREE SITE}
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
minutes=${MINUTES:-15}

if [[ -z ${MOTLEY_UNSHARED:-} ]]; then
    MOTLEY_UNSHARED=1 exec unshare --mount --propagation private "$0" "$@"
fi
grep -q '^enabled' /proc/sys/fs/binfmt_misc/qemu-aarch64 || {
    echo "arm64.sh: programs of arm64 do not run here: update-binfmts --enable qemu-aarch64" >&2
    exit 1
}
scratch=$(mktemp -d)
server='' client=''
finish() {
    for process in $client $server; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    tail -n 5 "$scratch"/*.log
    rm -rf "$scratch"
}
trap finish EXIT

mount --rbind /proc "$tree/proc"
mount --rbind /dev "$tree/dev"
mkdir -p "$tree/opt/site" "$tree/opt/source"
for pair in "$site site" "$root source"; do
    mount --bind "${pair% *}" "$tree/opt/${pair##* }"
    mount -o remount,bind,ro "$tree/opt/${pair##* }"
done
# Not a function: in the background that would be a shell, and ending it would leave the client.
inside=(chroot "$tree" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root OMP_NUM_THREADS=1
    PYTHONPATH=/opt/site:/opt/source/core:/opt/source PYTHONDONTWRITEBYTECODE=1)

cat >"$scratch/run.toml" <<'RUN'
[run]
name = "arm64"
algorithm = "quped"
rounds = 1
[workload]
name = "digits"
[clients]
expected = 1
minimum = 1
[round]
deadline_seconds = 1800
[settings]
local_steps = 2
batch_size = 20
[[tiers]]
name = "phone"
variant = "cnn1"
bits = 2
RUN

"$python" -m fedserver.cli serve --data "$scratch/data" --insecure --listen 127.0.0.1:0 \
    --ready-file "$scratch/ready" 2>"$scratch/server.log" &
server=$!
while [[ ! -s $scratch/ready ]]; do
    kill -0 "$server"
    sleep 0.2
done
"${inside[@]}" python3 -c 'import platform, torch, numpy, grpc
print(platform.machine(), "python", platform.python_version(), "torch", torch.__version__,
      "numpy", numpy.__version__, "grpcio", grpc.__version__)'
rm -rf "$tree/root/arm64"
"${inside[@]}" python3 -m fedclient.cli start --insecure --server "$(head -n 1 "$scratch/ready")" --name arm64-1 \
    --state /root/arm64 --workload digits=motley.workloads.digits:Digits --threads 1 \
    --data 'digits?clients=20&client=0' 2>"$scratch/client.log" &
client=$!
SECONDS=0
timeout "${minutes}m" "$python" -m fedserver.cli submit "$scratch/run.toml" --data "$scratch/data" --watch
echo "one round and the finished model after $SECONDS s, measuring the device included"
kill "$client"
wait "$client" || true
client=''
"${inside[@]}" python3 -m fedclient.cli models --state /root/arm64
