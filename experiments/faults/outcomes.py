"""Try bad inputs one by one, and count what becomes of each."""

import contextlib
import io
import re
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from jaxcifar.machine.command import explain

SECONDS = 120  # an input that takes longer counts as a traceback


class Case(NamedTuple):
    """Hold one bad input: its name, and a call with it.

    why: maps what the call returned to why it may be accepted silently; '' if there is no reason.
    """

    name: str
    call: Callable[[], Any]
    why: Callable[[Any], str] = lambda result: ''


class Tally:
    """Count the outcomes of cases at one door.

    Each input ends in a one-line error (`lines`) or a traceback, or is accepted: with a line on stderr
    (`said`), silently for a reason (`silent`: reason -> how many), or silently for none (`unexplained`).
    """

    def __init__(self, door: str):
        self.door = door
        self.lines: list[str] = []
        self.said = 0
        self.silent: Counter[str] = Counter()
        self.unexplained: list[str] = []
        self.tracebacks: list[str] = []

    @property
    def tried(self) -> int:
        """Return how many cases there were."""
        return len(self.lines) + self.said + self.silent.total() + len(self.faults)

    @property
    def faults(self) -> list[str]:
        """Return what is to be mended: tracebacks, and what was taken without a reason."""
        return self.tracebacks + self.unexplained

    def add(self, cases: Iterable[Case]) -> 'Tally':
        """Try cases, and return the tally itself."""
        for case in cases:
            self.attempt(case)
        return self

    def attempt(self, case: Case) -> str:
        """Try a case; return its line, or '' where the input was taken."""
        heard = io.StringIO()
        try:
            with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(io.StringIO()), _limited():
                reason = case.why(case.call())
        except (Exception, SystemExit) as error:
            line = _line(error, heard.getvalue())
            if line:
                self.lines.append(line)
                return line
            where = traceback.format_exception(error)[-2].strip().splitlines()[0]
            self.tracebacks.append(f'{self.door}: {case.name}: {error!r:.300} ({where})')
            return ''
        if heard.getvalue().strip():
            self.said += 1
        elif reason:
            self.silent[reason] += 1
        else:
            self.unexplained.append(f'{self.door}: {case.name}: taken without a word')
        return ''

    def row(self) -> dict[str, Any]:
        """Return the counts as cells of a table."""
        counts = [len(self.lines), self.said, self.silent.total()]
        names = ('tried', 'one_line', 'said', 'silent', 'unexplained', 'tracebacks')
        return dict(zip(names, [self.tried, *counts, len(self.unexplained), len(self.tracebacks)]))


def _line(error: BaseException, heard: str) -> str | None:
    """Return the one line that a command prints for an error, None where that is a traceback."""
    if isinstance(error, SystemExit):  # argparse has printed the usage, and the line as the last
        last = (heard.strip().splitlines() or [''])[-1]
        return last if re.search(r'error: .{10}', last) else None
    line = explain(error) if isinstance(error, Exception) else None
    return line if line and len(line) > 10 and '\n' not in line else None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise `TimeoutError` in the block after SECONDS; silence warnings, which do not count as a line."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
