"""Let only one process at a time use a workdir, and handle the signals that stop it."""

import contextlib
import errno
import os
import platform
import signal
import sys
import threading
from pathlib import Path

import jax
from filelock import BaseFileLock, FileLock, Timeout

from jaxcifar.machine import hosts
from jaxcifar.machine.errors import Interrupted, Preempted, UserError

LOCK = '.lock'  # file in a workdir that says which process trains there
# Errors of the folder itself and not of its locks: the first write would fail with them, too.
UNWRITABLE = errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT


@contextlib.contextmanager
def locked(workdir: Path):
    """Create the workdir and lock it; raise `UserError` if another process holds the lock.

    If the block raises before anything was written, the folder is removed.
    """
    # Remember what was not there, so that a run that fails at once leaves nothing.
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    # A lock that is only a file would outlive a killed job, and lock the job out on another host.
    lock = FileLock(workdir / LOCK, timeout=0, fallback_to_soft=False)
    # All hosts must raise together: if one raised alone, the others would wait for it.
    if hosts.anywhere(hosts.is_first() and not _acquired(lock, workdir)):  # the first holds it for all
        raise UserError(
            f'{_holder(workdir)} is training in {workdir}: choose another --workdir, or wait for it'
        )
    try:
        yield
    except BaseException:
        if hosts.is_first():
            _leave_no_stub(workdir, made)
        raise
    finally:
        lock.release()


def _acquired(lock: BaseFileLock, workdir: Path) -> bool:
    """Return whether this process may train: it has the lock, or the file system has none, with a warning."""
    try:
        lock.acquire()
    except Timeout:
        return False
    except OSError as error:
        # File systems report in many ways that they have no locks, so any other error means that.
        if error.errno in UNWRITABLE:
            raise
        why = f'warning: {workdir} cannot be locked ({error.strerror})'
        print(f'{why}: make sure that no other process trains there', file=sys.stderr)
        return True
    # This text is for people; the lock itself ends with the process.
    with contextlib.suppress(OSError):
        (workdir / LOCK).write_text(f'{os.getpid()} {platform.node()}\n')
    return True


def _holder(workdir: Path) -> str:
    """Return who holds the lock, as far as its file says."""
    with contextlib.suppress(OSError, ValueError):
        number, host = (workdir / LOCK).read_text().split()
        return f'process {int(number)} on {host}'
    return 'another process'


def _leave_no_stub(workdir: Path, made: list[Path]):
    """Remove the folders that were `made` for a run, and its lock, unless there is anything else in them."""
    if [path for path in workdir.rglob('*') if not path.is_dir() and path != workdir / LOCK]:
        return
    (workdir / LOCK).unlink(missing_ok=True)
    # Remove the innermost first. In a folder that existed before, remove only our own subfolder.
    within = sorted(workdir.rglob('*'), reverse=True) if made else [workdir / 'checkpoints']
    with contextlib.suppress(OSError):
        for folder in [*within, *made]:
            folder.rmdir()


def keep_compiled(folder: str):
    """Let XLA reuse programs that an earlier run compiled into `folder`, and store new ones there."""
    if folder:
        jax.config.update('jax_compilation_cache_dir', str(Path(folder).expanduser().absolute()))
        # A program that compiles faster than this is not worth a file.
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


class Terminated(threading.Event):
    """Record that SIGTERM arrived. Before there is anything to save, the signal ends the run at once."""

    can_save = False

    def handle(self, *_):
        """Handle the signal."""
        self.set()
        if not self.can_save:
            raise Preempted('stopped before a step was taken; run the same command again')


class TerminatedAnywhere(Terminated):
    """Tell all hosts, between the same two steps, that one of them received SIGTERM."""

    def __init__(self):
        super().__init__()
        self._stop = hosts.Stop()

    def is_set(self) -> bool:
        """Return whether it is set; all hosts must ask equally often."""
        return self._stop()


@contextlib.contextmanager
def signals():
    """Yield a `Terminated`, and restore the previous signal handlers afterwards.

    Ctrl-C gets a handler, too, although Python's default does the same: asyncio, which orbax uses,
    replaces the default handler with one that can lose the interrupt.
    """
    terminated = Terminated() if hosts.alone() else TerminatedAnywhere()
    if threading.current_thread() is not threading.main_thread():
        yield terminated  # only the main thread may have handlers
        return
    handlers: dict = {signal.SIGINT: _interrupt}
    if hosts.alone():  # or JAX has its own, which tells the other hosts
        handlers[signal.SIGTERM] = terminated.handle
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield terminated
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_):
    # A caller that has something to save replaces this message.
    raise Interrupted('stopped; run the same command to continue')
