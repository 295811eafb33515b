"""The parts that a round cannot do without, each alone, with as many processes as the daemons.

`python benchmarks/wire_parts.py PART ...` is one of those processes; `measure_parts` starts them,
lets them go at one time and takes the time until the last one has ended.

- echo: a bare grpc.aio server and a channel for each client; the same frames of a MiB in the same
  protobuf messages down and up, out of memory and into nothing; with the allocator's settings.
- hash: SHA-256 of what each side receives or makes: a client's download and update, the server's
  new state and every update.
- files: a client's download, its update (synced), the server's copy of that (synced) and its new
  state (synced).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import grpc
import numpy as np

from motley.allocator import reuse_freed_memory
from motley.wire import FRAME_SIZE
from motley.wire.stubs import common_pb2, federation_pb2, federation_pb2_grpc

PARTS = ("echo", "hash", "files")
REPEATS = 3
FRAME = np.random.default_rng(0).bytes(FRAME_SIZE)


def frames(size: int) -> list[tuple[int, int]]:
    """Return (offset, length) of each frame."""
    return [(at, min(FRAME_SIZE, size - at)) for at in range(0, size, FRAME_SIZE)]


def frame(at: int, length: int) -> common_pb2.Frame:
    data = FRAME if length == FRAME_SIZE else FRAME[:length]
    return common_pb2.Frame(offset=at, data=data, crc32=0)


class Echo(federation_pb2_grpc.FederationServicer):
    """Sends so many bytes, and takes what comes."""

    def __init__(self, size: int) -> None:
        self._size = size

    async def Download(  # noqa: N802
        self, request: federation_pb2.DownloadRequest, context: grpc.aio.ServicerContext
    ) -> None:
        for at, length in frames(self._size):
            await context.write(frame(at, length))

    async def Upload(  # noqa: N802
        self,
        requests: AsyncIterator[federation_pb2.UploadMessage],
        context: grpc.aio.ServicerContext,
    ) -> None:
        received = 0
        async for message in requests:
            received += len(message.frame.data)
        await context.write(federation_pb2.UploadReply(acknowledged=received))


async def echo_server(size: int) -> None:
    server = grpc.aio.server()
    federation_pb2_grpc.add_FederationServicer_to_server(Echo(size), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await server.stop(None)


async def echo_client(size: int, port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        stub = federation_pb2_grpc.FederationStub(channel)
        while await _told():
            received = 0
            async for came in stub.Download(federation_pb2.DownloadRequest()):
                received += len(came.data)
            call = stub.Upload()
            for at, length in frames(size):
                await call.write(federation_pb2.UploadMessage(frame=frame(at, length)))
            await call.done_writing()
            reply = await call.read()
            assert received == reply.acknowledged == size
            print("done", flush=True)


async def _told() -> bool:
    return bool(await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))


def hashes(size: int, count: int, threads: int) -> None:
    """Hash `count` times `size` bytes whenever told."""

    def once(_: int) -> bytes:
        digest = hashlib.sha256()
        for _at, length in frames(size):
            digest.update(FRAME[:length] if length < FRAME_SIZE else FRAME)
        return digest.digest()

    with ThreadPoolExecutor(threads) as pool:
        while sys.stdin.readline():
            list(pool.map(once, range(count)))
            print("done", flush=True)


def files(size: int, synced: int, unsynced: int, threads: int, folder: str) -> None:
    """Write so many files of `size` bytes whenever told; the last ones go before the next."""

    def once(number: int) -> None:
        with open(f"{folder}/{os.getpid()}-{number}", "wb", buffering=0) as stream:
            for _at, length in frames(size):
                stream.write(FRAME[:length] if length < FRAME_SIZE else FRAME)
            if number < synced:
                os.fsync(stream.fileno())

    with ThreadPoolExecutor(threads) as pool:
        while sys.stdin.readline():
            list(pool.map(once, range(synced + unsynced)))
            print("done", flush=True)


class Crew:
    """Processes that do their part whenever they are told."""

    def __init__(self, commands: Sequence[Sequence[object]]) -> None:
        self._processes = [_start(*command) for command in commands]

    def time(self) -> float:
        """Return the seconds from telling all until the last is done."""
        began = time.perf_counter()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != "done\n":
                raise RuntimeError(f"a part failed: {process.args}")
        return time.perf_counter() - began

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def measure_parts(clients: int, size: int, folder: Path) -> dict[str, float]:
    """Return the median seconds of each part, for payloads of `size` bytes in both directions."""
    found = {}
    server = _start("echo-server", size)
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        commands: dict[str, list[list[object]]] = {
            "echo": [["echo-client", size, port]] * clients,
            "hash": [["hash", size, 2, 1]] * clients + [["hash", size, clients + 1, 2]],
            "files": [["files", size, 1, 1, 1, place]] * clients
            + [["files", size, clients + 1, 0, 2, place]],
        }
        for part in PARTS:
            crew = Crew(commands[part])
            try:
                crew.time()  # warms
                found[part] = median(crew.time() for _ in range(REPEATS))
            finally:
                crew.close()
    assert server.stdin is not None
    server.stdin.close()
    server.wait()
    return found


def main() -> None:
    reuse_freed_memory()
    kind, *words = sys.argv[1:]
    if kind == "echo-server":
        asyncio.run(echo_server(int(words[0])))
    elif kind == "echo-client":
        asyncio.run(echo_client(int(words[0]), int(words[1])))
    elif kind == "hash":
        hashes(*map(int, words))
    else:
        files(*map(int, words[:-1]), folder=words[-1])


if __name__ == "__main__":
    main()
