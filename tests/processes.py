"""Processes that need no import of torch each, which costs seconds: ranks of a group, and clean interpreters."""

import contextlib
import io
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch"])


def run_ranks(function: Callable[..., None], world: int, folder: Path, *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` in forks of this process that are ranks of a gloo group, which meet in the
    folder.
    """
    meeting = f"file://{folder}/meeting-of-{world}"
    mp.start_processes(_rank, args=(function, world, meeting, arguments), nprocs=world, start_method="fork")


def run_clean(program: str) -> str:
    """What a program prints in a process that has imported torch and nothing of Lossary."""
    reader, writer = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_execute, args=(program, writer))
    process.start()
    writer.close()
    printed, error = reader.recv()
    process.join()
    assert error is None, error
    return str(printed)


def _rank(rank: int, function: Callable[..., None], world: int, meeting: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # threads of the parent are not in the fork
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    function(rank, *arguments)
    dist.destroy_process_group()


def _execute(program: str, writer: Connection) -> None:
    printed, error = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            exec(program, {})
    except BaseException:
        error = traceback.format_exc()
    writer.send((printed.getvalue(), error))
