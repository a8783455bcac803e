"""Measure what K members cost: python -m experiments.bench.members [NETWORK BATCH SIZE ROUNDS [MEMBERS]]

Times the step of mutual learning for each K of MEMBERS (1,2,4,8) on one device, K = 4 and 1 on 2 and 4
devices, and all members in one convolution: on a CPU K = 4 in its grouped form, which is slow there, on a
GPU each K in both forms. A GPU computes in bfloat16, and a turn is 30 steps that do not wait. On a busy
machine CPU seconds (`cpu`; with an accelerator, of the host's work alone) say more than wall-clock seconds.
Without accelerators, four virtual devices share the same cores: their rows show what is exchanged, not a
speed-up. A row is appended to experiments/results/members.csv after each way's last turn.
"""

import os
import re
import sys
from functools import partial

from experiments.results import ON_GPU

if 'jax' not in sys.modules and not ON_GPU:  # tests bring their own devices
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=4'

import jax
import numpy as np

from configs import mutual
from experiments import results
from experiments.bench.ours import OurStep, noise_dataset
from experiments.bench.turns import Times, take_turns
from jaxcifar.machine.command import run_words
from jaxcifar.machine.errors import UserError

STEPS, PRECISION = (30, 'bfloat16') if ON_GPU else (1, 'float32')
COLLECTIVES = 'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter'
SIZES = {'pred': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8}


def build(network: str, batch: int, size: int, way: str, members: int, devices: int, **fields) -> OurStep:
    """Return the step of so many members on so many devices, on noise of `size` pixels.

    way: loop, the members in turns; or a form of all in one convolution, as config.members_as has it.
    """
    config = mutual.get_config(network)
    config.update({'members': members, 'devices': devices, 'batch_size': batch, 'members_as': way, **fields})
    return OurStep(config, noise_dataset(batch, size))


def collectives(step: OurStep) -> tuple[str, int]:
    """Return a step's exchanges between devices, such as '1 all-gather', and their bytes on each device."""
    # The compiled text names each exchange with the shapes of its results.
    calls = re.findall(rf'= (.+?) ({COLLECTIVES})(?:-start)?\(', step.program.as_text())
    kinds = [kind for _, kind in calls]
    arrays = [a for shapes, _ in calls for a in re.findall(r'(\w+)\[([\d,]*)\]', shapes)]
    count = sum(SIZES[t] * int(np.prod([int(n) for n in dims.split(',') if n])) for t, dims in arrays)
    return ' + '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds)), count


def plan(members: list[int]) -> list[tuple[str, int, int]]:
    """Return (way, members, devices) of all that is measured."""
    several = [n for n in (2, 4) if n <= len(jax.devices())]
    ways = [('loop', k, 1) for k in members]
    ways += [('loop', k, n) for k in (4, 1) for n in several if k in members]
    if ON_GPU:
        return ways + [(form, k, 1) for k in members if k > 1 for form in ('dense', 'grouped')]
    return ways + ([('grouped', 4, 1)] if 4 in members else [])


def row(way: tuple[str, int, int], step: OurStep, times: Times) -> dict:
    """Return what a row says of a way's times."""
    name, members, devices = way
    exchanged, count = collectives(step)
    return {
        'way': name,
        'members': members,
        'devices': devices,
        'milliseconds': f'{times.median("ms"):.4g}',
        'times_one_member': f'{times.ratio("ms"):.2f}',
        'cpu_milliseconds': f'{times.median("cpu_ms"):.4g}',
        'cpu_times_one_member': f'{times.ratio("cpu_ms"):.2f}',
        'compile_seconds': f'{step.compile_seconds:.1f}',
        'collectives': exchanged,
        'bytes': count,
    }


def main(
    network: str = 'resnet20',
    batch: str = '64',
    size: str = '32',
    rounds: str = '9',
    members: str = '1,2,4,8',
):
    """Measure, append and print."""
    ways = plan([int(k) for k in members.split(',')])
    common = {**results.here(), 'network': network, 'batch': batch, 'image_size': size}
    one: OurStep | None = None  # the first way, with which the others are compared
    failed: list[str] = []
    for way in ways:
        name = '{} K={} on {}'.format(*way)
        try:
            step = build(network, int(batch), int(size), *way, precision=PRECISION)
            times = compare(one or step, step, int(rounds))
        except RuntimeError as error:  # what XLA or cuDNN cannot do, or out of memory
            failed.append(f'{name}: {str(error).splitlines()[0][:100]}')
            if one is None:
                break
            one.check_alive()
            continue
        one = one or step
        made = row(way, step, times)
        results.append('members', [common | made])
        print(
            f'{name}: {made["milliseconds"]} ms, {made["times_one_member"]} times one member '
            f'(cpu {made["cpu_times_one_member"]}); {made["collectives"]}, {made["bytes"]:,} bytes; '
            f'compiled in {made["compile_seconds"]} s',
            flush=True,
        )
    if failed:
        raise UserError(f'failed: {"; ".join(failed)}')


def compare(one: OurStep, step: OurStep, rounds: int) -> Times:
    """Return the times of a step in turns with those of one member; raise `RuntimeError` if it fails."""
    turns = {'one': partial(one.turn, STEPS)} | ({} if step is one else {'step': partial(step.turn, STEPS)})
    times = dict(take_turns(turns, rounds, warm=1))
    last = times[[*turns][-1]]
    if reason := last.failed or last.base.failed:
        raise RuntimeError(reason)
    return last


if __name__ == '__main__':
    run_words(main)
