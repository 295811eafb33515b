"""One task from its offer to the server's acknowledgement."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from structlog.stdlib import get_logger

from fedclient.connection import Connection
from fedclient.errors import TransferError, WorkerError
from fedclient.models import FinishedModel, record
from fedclient.options import ClientOptions
from fedclient.outbox import Outbox, Update, UpdateMeta
from fedclient.protocol import Done, Job, Progress, told
from fedclient.runner import WorkerRunner
from fedclient.state import StateDirectory
from fedclient.transfer.download import download
from fedclient.transfer.peer import Peer
from fedclient.transfer.speed import LinkRecord
from fedclient.transfer.upload import upload
from motley import plugins
from motley.errors import MotleyError, WorkloadError
from motley.messages import task_from_proto
from motley.wire.stubs import common_pb2, federation_pb2

log = get_logger()

_STATUS_WORDS = {
    federation_pb2.UPDATE_STATUS_ACCEPTED: "accepted",
    federation_pb2.UPDATE_STATUS_SURPLUS: "surplus",
    federation_pb2.UPDATE_STATUS_LATE: "late",
}


class Phase(Enum):
    """What is being done with a task."""

    WORKING = "working"
    SENDING = "sending"


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What is needed to do tasks."""

    options: ClientOptions
    state: StateDirectory
    outbox: Outbox
    peer: Peer
    connection: Connection
    runner: WorkerRunner
    link: LinkRecord


class Assignment:
    """One task in hand."""

    def __init__(self, desk: Desk, task: common_pb2.Task) -> None:
        self._desk, self.task = desk, task
        self.phase = Phase.WORKING
        self._log = log.bind(run=task.run_name, round=task.round, task=task.task_id)

    async def do(self) -> bool:
        """Download, work, send or report; return whether the task came to a good end.

        Failures are reported to the server, with the code and words of what went wrong.
        """
        try:
            return await self._do()
        except WorkerError as error:
            return await self._fail(error.failure_code, str(error), permanent=error.permanent)
        except TransferError as error:
            return await self._fail(error.failure_code, str(error))
        except WorkloadError as error:
            return await self._fail(error.code, str(error), permanent=True)
        except MotleyError as error:
            return await self._fail(error.code, str(error))
        except OSError as error:
            return await self._fail("storage", f"the device's storage failed: {error}")
        except Exception as error:  # or the daemon would meet the same task at its next start
            self._log.exception("task_crashed")
            return await self._fail("crash", f"{type(error).__name__}: {error}")

    async def _do(self) -> bool:
        task, desk = self.task, self._desk
        waiting = desk.outbox.find(task.task_id)
        if waiting:
            return await send(desk, waiting)
        plugins.find(task.workload, desk.options.workloads)
        self._log.info("task_started", kind=common_pb2.TaskKind.Name(task.kind))
        broadcast = await self._broadcast()
        model = desk.state.model_path(task.run_name, task.run_id)
        try:
            done = await self._work(broadcast, model)
            update = self._keep(model, done)
        except BaseException:
            desk.outbox.remove(task.task_id)
            raise
        return await (send(desk, update) if update else self._report(done))

    async def _work(self, broadcast: Path | None, model: Path) -> Done:
        """Have the training process do the task."""
        task, desk = self.task, self._desk
        job = Job(
            client=desk.options.name,
            task=Job.encode_task(task.SerializeToString()),
            broadcast=str(broadcast or ""),
            update=str(desk.outbox.prepare(task.task_id)),
            model=str(model),
            personal=str(desk.state.run_directory(task.run_id)),
            privacy=str(desk.state.privacy_directory),
        )
        done = await desk.runner.run(job, self._progress)
        self._log.info("task_done", seconds=round(done.seconds, 2), samples=done.samples)
        return done

    def _keep(self, model: Path, done: Done) -> Update | None:
        """Make what was done outlive this process; return the update, if the task sends one."""
        self.phase = Phase.SENDING
        if self.task.kind == common_pb2.TASK_KIND_TRAIN:
            return self._desk.outbox.commit(self._meta(done))
        if self.task.kind == common_pb2.TASK_KIND_FINISH:
            self._keep_model(model, done)
        return None

    async def _broadcast(self) -> Path | None:
        """Fetch the task's payload; older ones go, since only the newest can be asked for again."""
        payload, folder = self.task.payload, self._desk.state.root / "downloads"
        if not payload.sha256:
            return None
        target = folder / payload.sha256.hex()
        for path in folder.iterdir():
            if path.name.partition(".")[0] != target.name:
                self._desk.state.disk.remove(path)
        desk = self._desk
        return await download(desk.peer, payload, self.task.task_id, target, desk.link)

    def _progress(self, progress: Progress) -> None:
        self._log.debug("task_progress", fraction=round(progress.fraction, 3))

    def _meta(self, done: Done) -> UpdateMeta:
        return UpdateMeta(
            task_id=self.task.task_id,
            run_id=self.task.run_id,
            run_name=self.task.run_name,
            round=self.task.round,
            sha256=done.sha256,
            size=done.size,
            samples=done.samples,
            metrics=done.told,
            train_seconds=done.seconds,
            restarted=done.restarted,
        )

    def _keep_model(self, model: Path, done: Done) -> None:
        task, options = self.task, self._desk.options
        spec = task_from_proto(task, options.name)
        finished = FinishedModel(
            run_id=task.run_id,
            run_name=task.run_name,
            client=options.name,
            workload=task.workload,
            workload_version=done.workload_version,
            arguments=spec.workload_arguments,
            variant=done.variant,
            data=options.data,
            folder=str(Path.cwd()),
            privacy=str(spec.plan.settings.get("privacy", "none")),
            algorithm=task.algorithm,
            rounds=task.rounds,
            file=model.name,
            size=model.stat().st_size,
            metrics=done.metrics,
        )
        record(model, finished, self._desk.state.disk)
        self._log.info("model_finished", file=str(model), size=finished.size)

    async def _report(self, done: Done) -> bool:
        """Report an evaluation or a finished model; then what it needed can go."""
        result = federation_pb2.Result(metrics=dict(done.told), seconds=done.seconds)
        told = await self._desk.connection.report(self.task.task_id, result=result)
        self._desk.outbox.remove(self.task.task_id)
        if self.task.kind == common_pb2.TASK_KIND_FINISH:
            for path in (self._desk.state.root / "downloads").iterdir():
                self._desk.state.disk.remove(path)
        return told

    async def _fail(self, code: str, message: str, *, permanent: bool = False) -> bool:
        self.phase = Phase.SENDING
        self._log.error("task_failed", code=code, message=message, permanent=permanent)
        failure = _failure(code, message, permanent)
        await self._desk.connection.report(self.task.task_id, failure=failure)
        return False


def _failure(code: str, message: str, permanent: bool) -> federation_pb2.Failure:
    return federation_pb2.Failure(code=code, message=told(message), permanent=permanent)


async def send(desk: Desk, update: Update) -> bool:
    """Send a complete update until the server has it or says that it never wants it.

    Accepted, surplus and late updates all leave the outbox. The personal state that belongs to
    one stays uncounted until the server's next task names it as its base version. The end of one
    that is refused is reported, so that its round does not wait for it until the deadline.
    """
    meta = update.meta
    noted = log.bind(run=meta.run_name, round=meta.round, task=meta.task_id)
    try:
        receipt = await upload(desk.peer, update, desk.link)
    except TransferError as error:
        noted.warning("update_dropped", code=error.failure_code, reason=str(error))
        return await _give_up(desk, meta, error.failure_code, str(error))
    except (MotleyError, OSError):
        raise
    except Exception as error:  # or it would be met again at each start
        noted.exception("update_dropped")
        return await _give_up(desk, meta, "crash", f"{type(error).__name__}: {error}")
    status = _STATUS_WORDS.get(receipt.status, "unknown")
    noted.info("update_sent", status=status, size=meta.size, duplicate=receipt.duplicate)
    desk.outbox.remove(meta.task_id)
    return True


async def _give_up(desk: Desk, meta: UpdateMeta, code: str, words: str) -> bool:
    """Report an update that cannot be sent, and remove it; return False."""
    await desk.connection.report(meta.task_id, failure=_failure(code, words, permanent=False))
    desk.outbox.remove(meta.task_id)
    return False
