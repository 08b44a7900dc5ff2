"""One run on several processes of this machine, started here and ended here.

Lightning's own launchers run the user's script again, or return nothing. Here each process is started with the run's
objects, the first reports its progress, and its result or error comes back to the caller.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import multiprocessing

if TYPE_CHECKING:
    from repertory.training.engine import FitResult, Job


Work = Callable[[Any, Callable[[int, int], None]], Any]


def launch(job: Job, report: Callable[[int, int], None]) -> FitResult:
    """Run ``job`` on ``job.settings.devices`` processes and return the first one's result.

    Signals go to the processes, which finish their step. A process that fails ends all, and its error is raised here.
    ValueError for several nodes, which need an outside starter; TypeError where the model, the data or a method cannot
    be pickled.
    """
    from repertory.training.engine import run_job

    if job.settings.num_nodes > 1:
        raise ValueError(
            f"num_nodes is {job.settings.num_nodes}: start the same command on every node with torchrun or srun, "
            "one process a device"
        )
    return start(run_job, job, job.settings.devices, report)


def start(work: Work, job: Any, devices: int, report: Callable[[int, int], None]) -> Any:
    """Run ``work(job, report)`` on ``devices`` processes that find each other, and return the first one's result."""
    with tempfile.TemporaryDirectory(prefix="repertory-") as folder:
        payload, result = Path(folder) / "job", Path(folder) / "result"
        payload.write_bytes(_pickled((work, job), devices))
        context = multiprocessing.get_context("spawn")
        listener, speaker = context.Pipe(duplex=False)
        port = _free_port()
        processes = [
            context.Process(target=_take_part, args=(rank, devices, port, payload, result, speaker))
            for rank in range(devices)
        ]
        with _Forwarding() as forwarding:
            try:
                for process in processes:
                    process.start()
                speaker.close()
                _follow(processes, listener, report, forwarding)
            finally:
                _end(processes)
        return torch.load(result, weights_only=False)


def _take_part(rank: int, world: int, port: int, payload: Path, result: Path, speaker: Connection) -> None:
    """A started process: take part, then say how it went."""
    for number in (signal.SIGINT, signal.SIGTERM):  # until the run takes them; the caller repeats what it forwards
        signal.signal(number, signal.SIG_IGN)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world)
    )
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    try:
        work, job = pickle.loads(payload.read_bytes())
        given = work(job, lambda done, total: speaker.send(("progress", done, total)) if rank == 0 else None)
        if rank == 0:
            torch.save(given, result)
            speaker.send(("done",))
    except BaseException as error:
        speaker.send(("error", rank, _portable(error)))
        raise SystemExit(1) from error


def _follow(processes: list[Any], listener: Connection, report: Callable[[int, int], None], forwarding: Any) -> None:
    """Pass on progress and signals until the first process is done; raise the error of one that failed."""
    while True:
        if listener.poll(0.2):
            try:
                message = listener.recv()
            except EOFError:
                break
            if message[0] == "progress":
                report(message[1], message[2])
            elif message[0] == "error":
                raise message[2]
            else:
                break
        elif any(process.exitcode for process in processes):
            break
        forwarding.repeat(processes)
    for process in processes:
        process.join(10)
    for rank, process in enumerate(processes):
        if process.exitcode:
            raise RuntimeError(f"training process {rank} ended with status {process.exitcode}")


class _Forwarding:
    """Inside, SIGINT and SIGTERM are remembered, and repeated to the processes once a second until these have ended."""

    def __init__(self) -> None:
        self.number, self._sent = 0, 0.0
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> _Forwarding:
        if self._main:
            self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT == self.number:
            raise KeyboardInterrupt
        self.number = number

    def repeat(self, processes: list[Any]) -> None:
        """Send the remembered signal, if it is time."""
        if self.number and time.monotonic() - self._sent > 1:
            self._sent = time.monotonic()
            for process in processes:
                if process.is_alive():
                    os.kill(process.pid, self.number)


def _end(processes: list[Any]) -> None:
    """End what still runs: after an error the others wait for it in a collective, where no gentler signal is heard."""
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _pickled(job: Any, devices: int) -> bytes:
    try:
        return pickle.dumps(job)
    except Exception as error:
        raise TypeError(
            f"devices is {devices}, so the model, the data and the methods are sent to other processes, "
            f"but they cannot be pickled: {error}"
        ) from error


def _portable(error: BaseException) -> BaseException:
    """``error`` if it survives the way to the caller, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
