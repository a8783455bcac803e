"""One process at a time in a workdir; the processes that tests kill are in test_faults.py."""

import errno
import fcntl
import os
import platform
import signal

import pytest

from jaxcifar.machine import process
from jaxcifar.machine.errors import UserError


def test_a_held_workdir_names_its_holder(tmp_path):
    (tmp_path / 'file').touch()
    with process.locked(tmp_path):
        words = rf'process {os.getpid()} on {platform.node()} is training in .*: choose another --workdir'
        with pytest.raises(UserError, match=words), process.locked(tmp_path):
            pass
        (tmp_path / process.LOCK).write_text('')
        with pytest.raises(UserError, match='another process is training'), process.locked(tmp_path):
            pass
    with process.locked(tmp_path):
        pass


@pytest.mark.parametrize('fault', [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_named(fault, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    for _ in range(2):  # what the first leaves does not keep the second out
        with process.locked(tmp_path):
            (tmp_path / 'file').touch()
        assert f'warning: {tmp_path} cannot be locked ({os.strerror(fault)})' in capsys.readouterr().err


def test_an_interrupt_has_a_word_and_the_handler_before_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match='run the same command to continue'), process.signals():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
