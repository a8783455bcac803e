"""Show progress while nothing is printed: a line that counts seconds on a terminal, one line in a log."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

SILENCE = 1.0  # seconds after which a log file gets a line
BLINK = 0.3  # … and a terminal one: anything shorter would only flicker

verbose = False  # whether the lines for those who tune XLA are printed too
_at: list[tuple[str, float]] = []  # what is going on and since when, the innermost last
_shows = True
_log: TextIO | None = None
_told: set[str] = set()  # what this log already says, so that later epochs do not repeat it
_in_a_table = False


class Line:
    """Render what is going on, anew at each refresh of a terminal."""

    def __rich__(self) -> Text:
        return Text(line(), style='dim', no_wrap=True, overflow='ellipsis')


def leave_to_the_first_host():
    """Show nothing from here on: the hosts all do the same, and may share a terminal."""
    global _shows
    _shows = False


def line() -> str:
    """Return what is going on and for how long, 'compiling the step … 12 s'; '' where nothing is."""
    for what, since in _at[-1:]:
        if (seconds := time.monotonic() - since) > BLINK:
            return f'{what} … {seconds:.0f} s'
    return ''


@contextlib.contextmanager
def during(what: str) -> Iterator[None]:
    """Show `what`, a phrase such as 'loading digits', for as long as the block runs.

    A terminal gets a line that counts seconds and then vanishes. A log gets one line, once, if it takes long.
    """
    alarms = [threading.Timer(SILENCE, _tell, [what])]
    live = None
    # Only the outermost block owns the line; blocks within it change its words.
    if _shows and not _at and not _in_a_table:
        terminal = Console(stderr=True)
        if terminal.is_terminal:
            # What goes from stdout to a file must not end up on the terminal.
            live = Live(
                Line(), console=terminal, refresh_per_second=4, transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )  # fmt: skip
            alarms.append(threading.Timer(BLINK, live.start))
    entry = what, time.monotonic()
    _at.append(entry)
    for alarm in alarms:
        alarm.daemon = True
        alarm.start()
    try:
        yield
    finally:
        # Trainings in two threads leave in any order. Ctrl-C may come while an alarm is waited for.
        _at.remove(entry)
        try:
            for alarm in alarms:
                alarm.cancel()
                alarm.join()
        finally:
            if live is not None:
                live.stop()


def _tell(what: str):
    if _log is not None and what not in _told:
        _told.add(what)
        print(f'{what} …', file=_log, flush=True)


@contextlib.contextmanager
def logged(log: TextIO | None) -> Iterator[None]:
    """Also write to `log` what takes long, unless it is a terminal; by default only terminals show it.

    A command whose output another program reads must not mix such lines into it.
    """
    global _log
    _told.clear()
    # A notebook's stdout need not have isatty.
    _log = None if log is None or getattr(log, 'isatty', bool)() else log
    try:
        yield
    finally:
        _log = None


@contextlib.contextmanager
def in_a_table() -> Iterator[None]:
    """Leave the terminal to a table that shows a `Line` itself: a terminal has room for one of them."""
    global _in_a_table
    _in_a_table = True
    try:
        yield
    finally:
        _in_a_table = False
