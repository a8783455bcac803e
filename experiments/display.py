"""Show how the runs of a sweep go."""

import threading

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.sweep import Sweep


class Display:
    """Show one table of all runs on a terminal; elsewhere, print a line for each event."""

    def __init__(self, sweep: Sweep, follow: bool):
        self._states = {run.name: '' for run in sweep.runs}
        self._follow, self._lock = follow, threading.RLock()
        # A log file gets lines; a terminal gets one table that is redrawn.
        console = Console()
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self):
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live is not None:
            self._live.stop()

    def line(self, number: int, name: str, text: str):
        """Show a line that a running training has printed."""
        self._show(name, text)
        if self._follow:
            self._print(f'[task-{number}-{name}] {text}')

    def say(self, number: int, name: str, text: str):
        """Show what a run has come to."""
        self._show(name, text)
        if self._live is None:
            self._print(f'[{number + 1}/{len(self._states)}] {name}: {text}')

    def _show(self, name: str, text: str):
        with self._lock:
            self._states[name] = text
            if self._live is not None:
                shown = Table('run', 'state', box=None)
                for row in self._states.items():
                    shown.add_row(*map(Text, row))
                self._live.update(shown)

    def _print(self, line: str):
        with self._lock:
            if self._live is not None:
                self._live.console.print(line, markup=False, highlight=False)
            else:
                print(line, flush=True)
