"""Tells trackers of rounds as they close; a tracker that fails never touches a run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from structlog.stdlib import get_logger

from fedserver.errors import TrackerError
from fedserver.rounds.driver import Driver
from fedserver.rounds.reader import Reader
from fedserver.tracking.closed import ClosedRound, Tracker, closed_rounds, from_now_on
from fedserver.tracking.mlflow import MlflowTracker
from fedserver.tracking.tensorboard import TensorBoardTracker

log = get_logger()

KINDS: Mapping[str, Callable[[str], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
}


def open_tracker(text: str) -> Tracker:
    """Return the tracker that `KIND:WHERE` names.

    Raises:
        TrackerError: another form or kind, or its package is not installed.
    """
    kind, _, where = text.partition(":")
    if kind not in KINDS or not where:
        raise TrackerError(f"--track {text!r}: expected tensorboard:FOLDER or mlflow:URI")
    try:
        return KINDS[kind](where)
    except ImportError as error:
        raise TrackerError(
            f"--track {text!r} needs the package {error.name}: pip install 'motley-fl[{kind}]'"
        ) from None


@contextlib.asynccontextmanager
async def tracked(
    trackers: Sequence[Tracker], reader: Reader, driver: Driver
) -> AsyncIterator[None]:
    """Tell trackers of every round that closes meanwhile, and of the last ones at the end."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trackers")
    loop, untold = asyncio.get_running_loop(), await reader(from_now_on)

    async def tell() -> None:
        for closed in await reader(closed_rounds, untold):
            await loop.run_in_executor(thread, _tell, trackers, closed)
            untold.ids.discard(closed.id)

    async def follow() -> None:
        with driver.watching() as changed:
            while True:
                await tell()
                await changed.wait()
                changed.clear()

    following = asyncio.create_task(follow())
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await tell()
        for tracker in trackers:
            await loop.run_in_executor(thread, tracker.close)
        thread.shutdown()


def _tell(trackers: Sequence[Tracker], closed: ClosedRound) -> None:
    for tracker in trackers:
        try:
            tracker.round_closed(closed)
        except Exception as error:
            log.error("tracker_failed", tracker=type(tracker).__name__, reason=repr(error)[:300])
