"""Print a run: on a terminal a live table, in a log file one plain line an epoch."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from jaxcifar.data.describe import describe as describe_images
from jaxcifar.engine.schedules import last_restart
from jaxcifar.machine import compiler, hosts, memory, status
from jaxcifar.machine.text import spread
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.session import Session
from jaxcifar.runs.sparsity import describe

SETTLED = 10  # steps after which a rate means something
WAITS = 'evaluation', 'saving'  # what training waits for between epochs
HEARTBEAT = 300.0  # seconds between lines within an epoch, in a log file
COLUMNS = ('epoch', 'lr', 'train loss', 'train %', 'validation %', 'best %', 'seconds', 'images/s')


class Console:
    """Print epochs as they finish, for a run of `total` steps of which `step` are done."""

    def __init__(self, validation: str | None, step: int, total: int):
        self._terminal = Terminal(quiet=not hosts.is_first())
        self._columns = [c.replace('validation', validation or 'validation') for c in COLUMNS]
        self._rows: deque[list[str]] = deque(maxlen=20)
        self._total = total
        self._last_line = time.monotonic()
        self._live: Live | None = None
        self._stack = contextlib.ExitStack()
        # A live table in a log file would fill it with control characters.
        if self._terminal.is_terminal and hosts.is_first():
            self._progress = Bar(
                TextColumn('step'), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn('{task.fields[rate]}'), console=self._terminal,
            )  # fmt: skip
            self._task = self._progress.add_task('', total=total, completed=step, rate='')
            # The table is drawn anew at each refresh, for its last line counts seconds.
            self._live = Live(get_renderable=self._render, console=self._terminal, refresh_per_second=4)
            self._stack.enter_context(status.in_a_table())
            self._live.start()

    def say(self, line: str):
        """Print a line that stays."""
        # Names from files may hold square brackets, which rich takes for markup.
        self._terminal.print(line, highlight=False, markup=False, soft_wrap=True)

    def detail(self, line: str):
        """Print a line that only --verbose asks for."""
        if status.verbose:
            self.say(line)

    def greet(self, session: Session, step: int, params, news: list[str]):
        """Say what a run is about to do from `step` on, and where; `news` are lines on what has changed."""
        # What is trained, on what, and where.
        config, mesh, order = session.config, session.mesh, session.order
        self.say(
            f'{config.network} x {config.members} on {config.dataset}: '
            f'{_images(order.rows)}, {session.epoch_steps} steps per epoch, '
            f'{mesh.size} x {mesh.devices.flat[0].device_kind} as {dict(mesh.shape)}'
        )
        calls = f'; {config.steps_per_call} steps a call' if config.steps_per_call > 1 else ''
        self.detail(f'compiler: {compiler.describe()}; memory {memory.describe()}{calls}')
        if config.members > 1:
            self.say(f'members on a device: {session.population.describe()}')
        # The split and the view: what the accuracies below will be about.
        for line in describe_images(session.dataset, session.split):
            self.say(line)
        for line in describe(config, session.population, params):
            self.say(line)
        # What may surprise a reader of the numbers comes last, next to them.
        if order.trimmed:
            self.say(f'{order.trimmed} images of the last batch are left out, so that it splits evenly')
        if session.chooses_on == 'test':
            self.say('data.validation=test: weights are chosen on the TEST images, which flatters them')
        if config.schedule.name == 'warm_restarts':
            start, end = last_restart(config, config.epochs - 1)
            # A head's rates follow those of the members, and do not belong in their mean.
            rate = _mean(session.learning_rates(session.total - 1)[: len(session.names)], '.3g')
            self.say(
                f'training ends at epoch {config.epochs - start} of a warm-restart cycle of {end - start}, '
                f'with a learning rate of {rate}; epochs={end} would finish the cycle'
            )
        if step:
            self.say(f'resumed at {session.place(step)}')
        for line in news:
            self.say(line)

    def stopped(self, session: Session, progress: Progress, members: np.ndarray):
        """Print which `members` [K] bool stop after this epoch, for lack of a new best."""
        epoch, best_epoch = progress.epoch, progress.selection.best_epoch
        for k in np.flatnonzero(members):
            line = f'{session.names[k]} stops at epoch {epoch}; its best is epoch {best_epoch[k]}'
            if session.config.schedule.name == 'warm_restarts':
                start, _ = last_restart(session.config, epoch - 1)
                line += f', the last warm restart was after epoch {start}' if start else ''
            self.say(line)

    def step(self, step: int, images_per_second: float):
        """Show that a step is done; this is cheap enough to call after every step."""
        rate = f'  {images_per_second:,.0f} images/s' if images_per_second else ''
        if self._live is not None:
            self._progress.update(self._task, completed=step, rate=rate.strip())
        # A step may take seconds on a CPU: silence in a log looks like a hang.
        elif time.monotonic() - self._last_line > HEARTBEAT:
            self._line(f'step {step}/{self._total}{rate}')

    def epoch(self, epoch: int, epochs: int, row: dict, seconds: float, images_per_second: float):
        """Print an epoch's numbers; `row` is {metric: [K]}, where validation may be None."""
        cells = [
            f'{epoch}/{epochs}',
            _mean(row['lr'], '.3g'),
            _mean(row['loss'], '.4f'),
            _percent(row['accuracy']),
            _percent(row['validation']),
            _percent(row['best']),
            f'{seconds:.1f}',
            f'{images_per_second:,.0f}',
        ]
        if self._live is not None:
            self._rows.append(cells)
        else:
            # Without a header above it, each number needs its name.
            self._line('  '.join(f'{c} {v}' for c, v in zip(self._columns, cells) if v))

    def _line(self, line: str):
        self._last_line = time.monotonic()
        self.say(line)

    def _render(self) -> Group:
        table = Table(*self._columns, box=None, header_style='bold')
        for column in table.columns:
            column.justify, column.no_wrap = 'right', True
        # Another thread draws the table, while the loop may add a row.
        for cells in tuple(self._rows):
            table.add_row(*cells)
        return Group(table, self._progress, *[status.Line()] * bool(status.line()))

    def end(self, lines: list[str]):
        """Close, and print what the run ends with."""
        self.close()
        for line in lines:
            self.say(line)

    def close(self):
        """Leave the table as it is and give the terminal back."""
        if self._live is not None:
            self._live.stop()
        self._stack.close()


def _mean(values, form: str) -> str:
    """Return 'mean ± std' over several members, or the mean alone where they are all the same."""
    values = np.asarray(values, np.float64)
    return spread(values[:1] if np.ptp(values) == 0 else values, form)


def _percent(values) -> str:
    """Return fractions in percent, without the sign, which the column's heading has."""
    return '' if values is None else _mean(100 * np.asarray(values), '.2f')


def _images(rows: list[np.ndarray]) -> str:
    """Return how many images there are to train on, for each of K members or for all."""
    low, high = min(map(len, rows)), max(map(len, rows))
    return f'{low if low == high else f"{low} to {high}"} training images{" each" * (len(rows) > 1)}'


class Clock:
    """Count images and seconds, leaving out the time that steps waited for `program` to compile."""

    def __init__(self, program):
        self.program = program
        self._images = self._steps = 0
        self._all_images, self._all_steps, self._all_seconds = 0, 0, 0.0
        self._start = self._compiled = 0.0
        self._waits = dict.fromkeys(WAITS, 0.0)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count the seconds that the block takes as time in which training waits for `what`."""
        start = time.perf_counter()
        yield
        waited = time.perf_counter() - start
        self._waits[what] += waited
        # Within an epoch, these seconds must not count as time of its steps.
        self._start += waited if self._start else 0.0

    def waits(self) -> dict[str, float]:
        """Return {what: seconds} waited for since the previous call."""
        waits, self._waits = self._waits, dict.fromkeys(WAITS, 0.0)
        return waits

    def start(self):
        """Begin an epoch, unless one has begun."""
        if not self._start:
            self._images = self._steps = 0
            # The program counts all its waiting; the clock subtracts what this epoch adds to it.
            self._start, self._compiled = time.perf_counter(), self.program.waited

    def await_batch(self):
        """Start timing the wait for a batch, except the first: until then, the loader starts and compiles."""
        if self._all_steps:
            self.start()

    def count(self, images: int, steps: int):
        """Count `steps` steps of `images` images each, which have been handed to the devices."""
        self._images += images * steps
        self._steps += steps

    def _seconds(self) -> float:
        compiling = self.program.waited - self._compiled
        # Never 0 within an epoch: rates are divided by it, and an epoch on a GPU may take almost no time.
        return max(time.perf_counter() - self._start - compiling, 1e-9) if self._start else 0.0

    def rate(self) -> float:
        """Return images a second of this epoch so far; 0 at first, when the host only runs ahead."""
        return self._images / self._seconds() if self._steps > SETTLED else 0.0

    def stop(self) -> tuple[float, float]:
        """End the epoch and return its (seconds, images a second); zeros where none had begun."""
        seconds, self._start = self._seconds(), 0.0
        if not seconds:
            return 0.0, 0.0
        # An epoch counts towards the mean in run.json only when it ends.
        self._all_images += self._images
        self._all_steps += self._steps
        self._all_seconds += seconds
        return seconds, self._images / seconds

    def mean_rate(self) -> float:
        """Return images a second over all epochs."""
        return self._all_images / self._all_seconds if self._all_seconds else 0.0

    def steps_per_second(self) -> float:
        """Return steps a second over all epochs."""
        return self._all_steps / self._all_seconds if self._all_seconds else 0.0
