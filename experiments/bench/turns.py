"""Take turns: the one loop that all speed measurements here share.

Ways that are compared are measured in rounds, and each way has one turn in a round. Other work of the
machine then disturbs all of them alike, and their ratios mean more than their rates.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from experiments import results
from experiments.bench.worker import WorkerError

Turn = Callable[[], dict[str, float]]  # a turn's readings, by name
FAULTS = RuntimeError, WorkerError  # most of all what XLA, cuDNN or PyTorch cannot do, or out of memory


class Times:
    """Hold the readings of one way, a dict for each of its turns, or why the way failed."""

    def __init__(self, base: 'Times | None' = None):
        self.base = base or self
        self.readings: list[dict[str, float]] = []
        self.failed = ''

    def values(self, name: str) -> list[float]:
        """Return a reading of all turns; [] where the way failed."""
        return [] if self.failed else [reading[name] for reading in self.readings]

    def median(self, name: str) -> float:
        """Return the median of a reading over the turns; nan where the way failed."""
        return statistics.median(self.values(name) or [float('nan')])

    def spread(self, name: str) -> tuple[float, float]:
        """Return the lowest and the highest value of a reading."""
        values = self.values(name) or [float('nan')]
        return min(values), max(values)

    def ratio(self, name: str) -> float:
        """Return the median over that of the way that all are compared with."""
        return self.median(name) / self.base.median(name)

    def take(self, turn: Turn):
        """Take a turn and keep its readings, or note how it failed."""
        try:
            self.readings.append(turn())
        except FAULTS as error:
            self.failed = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


def take_turns(
    ways: Mapping[str, Turn], rounds: int, warm: int = 0, seconds: float = float('inf')
) -> Iterator[tuple[str, Times]]:
    """Yield each way's name and times as soon as its last turn is over, or as soon as it has failed.

    Ratios are to the first way. `warm` turns of each come before the rounds and are not kept. No round
    begins that would end after `seconds`, judged by the longest one before it.
    """
    # The first way comes first in every round, too, so its median is known when others are compared.
    start, longest = time.monotonic(), 0.0
    times: dict[str, Times] = {}
    for name in ways:
        times[name] = Times(next(iter(times.values()), None))
    going = dict(ways)
    for number in range(-warm, rounds):
        began = time.monotonic()
        last = number == rounds - 1 or (number >= 0 and began - start + 2 * longest > seconds)
        # A copy: a way leaves the rounds when it fails, and in the last one after its turn.
        for name, turn in list(going.items()):
            times[name].take(turn)
            # A warm turn compiles, allocates or tunes; its readings say nothing.
            if number < 0:
                times[name].readings.clear()
            if last or times[name].failed:
                del going[name]
                yield name, times[name]
        # A round is as long as its ways together; the slowest so far predicts the next.
        longest = max(longest, time.monotonic() - began)
        if not going:
            return


def clock(run: Callable[[], Any], calls: int = 1) -> dict[str, float]:
    """Return the milliseconds ('ms') of one of several calls that do not wait for each other.

    The time is that of `results.clock`: of the wall clock on a GPU, else CPU time of the process.
    """
    start = results.clock()
    for _ in range(calls):
        made = run()
    jax.block_until_ready(made)
    return {'ms': 1e3 * (results.clock() - start) / calls}
