"""Measure our training step, Flax Linen's and PyTorch's in all its forms, each in a process of its own."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from experiments import results
from experiments.bench.comparison import known
from experiments.bench.turns import Times, take_turns
from experiments.bench.worker import Worker, WorkerError
from experiments.results import ON_GPU

TOGETHER = not ON_GPU  # whether the processes of all ways are alive at once
PASSES, ROUNDS, SECONDS = (2, 4, 0.5) if ON_GPU else (1, 7, 1)  # of a turn, some
PAUSE = 0 if ON_GPU else 0.3  # seconds for the spinning threads of the previous way to go to sleep
PATIENCE = 150  # seconds until a way must be built where time is short: max-autotune may take longer
DEVICE = 'experiments.bench.steps:device'
OURS, LINEN = 'experiments.bench.steps:ours', 'experiments.bench.steps:linen'
TORCH = 'experiments.bench.torch_steps:pytorch'
LAST, HALF = {'channels_last': True}, {'bfloat16': True}
HALF_OURS = {'precision': 'bfloat16'}


def torch_ways() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return PyTorch's forms by name: on a GPU each kind of graph and of compilation, too."""
    kinds: dict[str, dict[str, Any]] = {'compile': {'compiled': 'default'}}
    if ON_GPU:
        kinds |= {
            'graph': {'graph': True},
            'compile graph': {'compiled': 'default', 'graph': True},
            'reduce-overhead': {'compiled': 'reduce-overhead'},
            'max-autotune': {'compiled': 'max-autotune'},
        }
    ways = {'': {}, 'channels_last': LAST, 'channels_last bf16': {**LAST, **HALF}}
    for kind, options in kinds.items():
        # On a CPU torch.compile goes to channels_last by itself, with minutes of compiling.
        ways |= {kind: options, f'{kind} bf16': {**options, **HALF}} if ON_GPU else {}
        ways |= {f'{kind} channels_last': {**LAST, **options}}
        ways |= {f'{kind} channels_last bf16': {**LAST, **options, **HALF}}
    return {f'torch {how}'.strip(): (TORCH, options) for how, options in ways.items()}


ON_GPU_ALONE: dict[str, dict[str, Any]] = {
    '16 a call': {'steps_per_call': 16},
    'recorded 1 a call': {'recorded': True, 'steps_per_call': 1},
    'recorded': {'recorded': True},
    'recorded 16 a call': {'recorded': True, 'steps_per_call': 16},
}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # what `Worker` is given
    'ours': (OURS, {}),
    'ours bf16': (OURS, HALF_OURS),
    **{f'ours {how} bf16': (OURS, {**HALF_OURS, **more}) for how, more in ON_GPU_ALONE.items() if ON_GPU},
    'linen': (LINEN, {}),
    **torch_ways(),
}


class Job(NamedTuple):
    """Hold what is measured, and where: `here` is of `results.here`, `peak` the device's FLOP/s."""

    network: str
    batch: int
    here: dict[str, Any]
    peak: float


class Plan(NamedTuple):
    """Hold how long to measure: passes over all ways, turns per pass, seconds per turn, and a deadline."""

    passes: int = PASSES
    rounds: int = ROUNDS
    seconds: float = SECONDS
    until: float = float('inf')  # by time.monotonic(); no way begins that would end later


class Measured(Times):
    """Hold a way's turns in all passes, and the report that it gave in the first."""

    report: dict[str, float]

    def __init__(self):
        super().__init__()
        self.report = {}


def measure(job: Job, ways: list[str], plan: Plan) -> Iterator[tuple[str, Measured]]:
    """Yield each way and its times after its last turn, except ways for which no time is left."""
    measured = {way: Measured() for way in ways}
    groups, longest = [ways] if TOGETHER else [[way] for way in ways], 0.0
    ended: set[str] = set()  # those that no time was left for
    with tempfile.TemporaryDirectory() as folder:
        for number in range(plan.passes):
            for group in groups:
                start = time.monotonic()
                going = {w: measured[w] for w in group if w not in ended and not measured[w].failed}
                if not going:
                    continue
                if start + longest > plan.until:
                    print(f'no time is left for {", ".join(going)}', flush=True)
                    # What earlier passes have measured is kept.
                    yield from [(way, times) for way, times in going.items() if times.readings]
                    ended.update(going)
                    continue
                for way in take_group(job, going, Path(folder), plan):
                    if number == plan.passes - 1 or measured[way].failed:
                        yield way, measured[way]
                longest = max(longest, time.monotonic() - start)


def take_group(job: Job, group: dict[str, Measured], folder: Path, plan: Plan) -> Iterator[str]:
    """Yield each way of a group after its last turn in this pass; those that work are alive together."""
    with ExitStack() as stack:
        turns: dict[str, Callable[[], dict[str, float]]] = {}
        for way, measured in group.items():
            make, options = WAYS[way]
            own = folder / way.replace(' ', '_')  # a C++ compiler's words end at a blank
            left = plan.until - time.monotonic()
            limit = min(max(left, 1), PATIENCE) if left < float('inf') else None
            options = {'network': job.network, 'batch': job.batch, **options}
            worker = stack.enter_context(Worker(make, own, limit, **options))
            try:  # before the next is started, which would slow its compiler
                measured.report = worker.answer() | measured.report
            except WorkerError as error:
                if limit is not None and limit < PATIENCE and worker.is_late:
                    print(f'no time is left for {way}', flush=True)  # no fault of its own
                    continue
                measured.failed = str(error)
                yield way
            else:
                turns[way] = partial(
                    turn, worker, job.batch * measured.report.get('steps_per_call', 1), plan.seconds
                )
        for way, times in take_turns(turns, plan.rounds):
            group[way].readings += times.readings
            group[way].failed = times.failed
            yield way


def turn(worker: Worker, images: float, seconds: float) -> dict[str, float]:
    """Return a worker's rate in one turn and its memory; a call of its step takes so many images."""
    time.sleep(PAUSE)
    taken = worker.turn(seconds)
    return {'rate': taken['steps'] * images / taken['seconds'], 'bytes': taken['bytes']}


def rows_of(job: Job, ways: list[str], plan: Plan) -> list[dict[str, str]]:
    """Return a row for each way: those that this version has measured already, and those measured now."""
    same = {key: job.here[key] for key in ('commit', 'device', 'machine')}
    same |= {'network': job.network, 'batch': str(job.batch)}
    rows = [row for row in results.read('bench') if same.items() <= row.items() and row['way'] in ways]
    missing = [way for way in ways if way not in {row['way'] for row in rows}]
    if not missing:
        return rows
    print(f'{job.network}, batch {job.batch} …', flush=True)
    common = {**job.here, 'jax': version('jax'), 'torch': version('torch')}
    common |= {'network': job.network, 'batch': job.batch}
    # An image's FLOPs are taken from an existing row, until one of our own ways reports them.
    known_rows = (row for row in rows if row['share_of_peak'] and row['images_per_second'])
    flops = next((job.batch * job.peak * float(row['share_of_peak']) / float(row['images_per_second'])
                  for row in known_rows), float('nan'))  # fmt: skip
    for way, measured in measure(job, missing, plan):
        flops = measured.report.get('flops', flops)  # ours come first, and know it for all
        row = common | to_row(way, measured, flops / job.batch, job.peak)
        results.append('bench', [row])
        rows.append({name: str(value) for name, value in row.items()})
        said = f'failed: {row["failed"]}' if row['failed'] else f'{row["images_per_second"]} images/s'
        print(f'{way:40} {said}', flush=True)
    return rows


def to_row(way: str, measured: Measured, flops: float, peak: float) -> dict[str, str]:
    """Return a way's part of its row; flops: of an image's step."""
    rate, (slowest, fastest) = measured.median('rate'), measured.spread('rate')
    size = measured.values('bytes')[-1:] or [float('nan')]  # of the last pass, which has nothing to compile
    return {
        'way': way,
        # On a GPU a config without the field gets several.
        'steps_a_call': str(measured.report.get('steps_per_call', '')),
        'images_per_second': known(rate, '.4g'),
        'slowest': known(slowest, '.4g'),
        'fastest': known(fastest, '.4g'),
        'share_of_peak': known(rate * flops / peak, '.3f'),
        'peak_gflops': f'{peak / 1e9:.0f}',
        'megabytes': known(size[0] / 1e6, '.0f'),
        'compile_seconds': known(measured.report.get('compile_seconds', float('nan')), '.1f'),
        'failed': measured.failed,
    }
