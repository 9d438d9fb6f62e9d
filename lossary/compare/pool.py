"""Processes that train stacks: one thread each, one job at a time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType

import torch

from lossary.compare.journal import FitRecord
from lossary.compare.work import StackJob, train_job
from lossary.core.errors import UserError

SECONDS_BETWEEN_EVENTS = 0.02
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


@dataclass(frozen=True)
class EpochDone:
    """A stack has trained this many epochs, and this many of its members go on."""

    job: StackJob
    epochs: int
    active: int


@dataclass(frozen=True)
class StackDone:
    """A stack is finished."""

    job: StackJob
    fits: list[FitRecord]


class StackFailedError(RuntimeError):
    """A stack raised, or its process died; the message is what happened, in a line or two.

    Attributes:
        job: The stack.
        died: Whether its process died.
    """

    def __init__(self, job: StackJob, reason: str, *, died: bool, details: str = "") -> None:
        super().__init__(reason)
        self.job, self.died = job, died
        if details:
            self.add_note(f"In the worker process:\n{details}")


class Pool:
    """Worker processes over pipes.

    Workers are started as ``python -c`` rather than through ``multiprocessing``, which would import the caller's
    main module again in each of them: a script needs no ``if __name__ == "__main__"``. Each is in a session of its
    own, so that Ctrl-C reaches the parent alone, and ends when its pipe does, however the parent ended.
    It begins without any.
    """

    def __init__(self) -> None:
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()

    @property
    def idle(self) -> int:
        """Number of workers without a job."""
        return sum(worker.job is None for worker in self._workers)

    @property
    def busy(self) -> int:
        """Number of workers with a job."""
        return len(self._workers) - self.idle

    def submit(self, job: StackJob) -> None:
        """Give a job to an idle worker.

        Raises:
            StackFailedError: The worker died while it was idle.
        """
        next(worker for worker in self._workers if worker.job is None).start(job)

    def events(self, timeout: float | None = None) -> Iterator[EpochDone | StackDone]:
        """What busy workers report next; nothing after ``timeout`` seconds.

        Raises:
            StackFailedError: A stack raised, or its process died.
        """
        workers = {worker.connection: worker for worker in self._workers if worker.job is not None}
        for connection in wait(list(workers), timeout):
            assert isinstance(connection, Connection)
            yield workers[connection].receive()

    def resize(self, workers: int) -> None:
        """Start workers, or end idle ones."""
        while len(self._workers) < workers:
            self._workers.append(_Worker())
        for worker in self._workers[workers:]:
            worker.kill()
        del self._workers[workers:]

    def stop(self) -> None:
        """End the jobs that are running; their workers are replaced."""
        for index, worker in enumerate(self._workers):
            if worker.job is not None:
                worker.kill()
                self._workers[index] = _Worker()


class _Worker:
    """One process and the parent's end of its pipe."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from lossary.compare.pool import serve; serve({theirs.fileno()})"],
            env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.job: StackJob | None = None

    def start(self, job: StackJob) -> None:
        self.job = job
        try:
            self.connection.send(job)
        except ConnectionError:
            raise self._death() from None

    def receive(self) -> EpochDone | StackDone:
        job = self.job
        assert job is not None
        try:
            kind, *content = self.connection.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        if kind == "epoch":
            return EpochDone(job, *content)
        self.job = None
        if kind == "failed":
            reason, details = content
            raise StackFailedError(job, reason, died=False, details=details)
        return StackDone(job, *content)

    def kill(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def _death(self) -> StackFailedError:
        assert self.job is not None
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if code == -9:
            how += " (out of memory?)"
        return StackFailedError(self.job, f"the worker process {how}.", died=True)


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed: giving megabytes back and faulting them in again, page by page, at every step
    took a tenth to a fifth of the time of a stack.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def serve(descriptor: int) -> None:
    """Train the stacks that come over a pipe until it ends: what a worker process runs."""
    torch.set_num_threads(1)
    keep_freed_memory()
    connection = Connection(descriptor)
    last = 0.0

    def report(epochs: int, active: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_EVENTS:
            connection.send(("epoch", epochs, active))
            last = time.monotonic()

    try:
        while True:
            job, last = connection.recv(), 0.0
            try:
                connection.send(("done", train_job(job, report)))
            except ConnectionError:
                raise
            except UserError as error:
                connection.send(("failed", str(error), ""))
            except Exception as error:
                connection.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
    except (EOFError, ConnectionError):
        return  # the parent has gone, and nobody wants the rest
