"""Stands for a forked process where a parent wants a child of its own: the daemon's worker, or a
command that a shell runs.

python -I -S forge_stub.py SOCKET MODULE: hands its three standard streams to the forge, waits, and
ends as the forked process ended. That one dies with it.
"""

import json
import os
import signal
import socket
import sys

line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line.connect(sys.argv[1])
request = {
    "arguments": sys.argv[2:],
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "stub": os.getpid(),
    "brief": sys.argv[2].endswith(".cli"),
}
socket.send_fds(line, [json.dumps(request).encode()], [0, 1, 2])
line.recv(1000)
for number in (0, 1, 2):
    os.close(number)  # or the parent would wait for the end of these too
data = line.recv(1000)
status = os.waitstatus_to_exitcode(json.loads(data)["status"]) if data else -signal.SIGKILL
if status < 0:
    os.kill(os.getpid(), -status)
os._exit(status)
