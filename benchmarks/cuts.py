"""What cut connections cost: 100 MB each way, cut 20 times by a proxy that counts bytes.

Run with `python benchmarks/cuts.py`; it takes about ten seconds.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import deque
from pathlib import Path

from report import Ratio, report
from structlog.testing import capture_logs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "transfer"))

from cutting_proxy import CuttingProxy
from transfer_rig import TransferRig

from fedclient.transfer.download import download
from fedclient.transfer.speed import FULL_FRAME
from fedclient.transfer.upload import upload

MIB, CUTS = 100, 20
TARGET = 1.05


async def measure(folder: Path, way: str) -> list[Ratio]:
    """Return bytes sent over bytes of the payload, one way, and the dearest cut."""
    rig = TransferRig(folder, MIB)
    async with rig.serving() as address:
        limits = deque([rig.size // (CUTS + 1)] * CUTS)
        proxy = CuttingProxy(address, **{f"cuts_{way}": limits})
        async with proxy, rig.client(proxy.address) as (peer, link):
            with capture_logs() as logs:
                if way == "up":
                    await upload(peer, rig.update(), link)
                else:
                    await download(peer, rig.ref, "task-1", folder / "got", link)
    assert proxy.cut == CUTS
    sent = int(getattr(proxy, way))
    word = {"up": "upload", "down": "download"}[way]
    detail = f"{sent:,} of {rig.size:,} bytes; {proxy.cut} cuts"
    offsets = [entry["offset"] for entry in logs if entry["event"] == f"{word}_started"]
    costs = sorted(proxy.repeated(way, offsets, rig.size))
    median, worst = costs[len(costs) // 2], costs[-1]
    return [
        Ratio(f"{word}: bytes sent / payload", sent / rig.size, TARGET, detail=detail),
        Ratio(
            f"{word}: repeated in the dearest cut / 1 MiB",
            worst / FULL_FRAME,
            detail=f"{worst / 1024:.0f} KiB, median {median / 1024:.0f} KiB, framing included",
        ),
    ]


async def main() -> None:
    """Measure both ways."""
    ratios: list[Ratio] = []
    for way in ("up", "down"):
        with tempfile.TemporaryDirectory() as folder:
            ratios += await measure(Path(folder), way)
    report("cuts", f"{MIB} MiB of payload, cut {CUTS} times, counted at a TCP proxy", ratios)


if __name__ == "__main__":
    asyncio.run(main())
