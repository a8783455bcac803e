"""What K members cost: python -m experiments.members [NETWORK BATCH SIZE ROUNDS]

Times the step of mutual learning for K = 1, 2, 4, 8 on one device, K = 4 on 1, 2 and 4, and, as an
alternative that was tried, K = 4 mapped over stacked weights (`vmap`). The steps are taken in turn, so
that what else the machine does is shared; medians over rounds. On a busy machine the seconds of its
cores (`cpu`; where there is an accelerator, the host's work alone) say more than those of the clock.
Without accelerators the devices are four virtual ones on the same cores: those rows show what is
exchanged, not what is gained.
"""

import os
import re
import statistics
import sys
import time

if 'jax' not in sys.modules:  # tests bring their own devices
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=4'

import jax
import numpy as np

from configs import mutual
from experiments import results
from jaxcifar.data.datasets import Dataset
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import init_state
from jaxcifar.engine.step import make_train_step
from jaxcifar.machine.command import run_words
from jaxcifar.runs.resolve import finalize

COLLECTIVES = 'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter'
SIZES = {'pred': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8}


class Mapped(Population):
    """Members as one network with a leading axis, which makes grouped convolutions of theirs."""

    def _forward_group(self, network, train, own, params, stats, images, keys):
        def one(p, s, key):
            (z, f), s = network.apply({'params': p, 'batch_stats': s}, images, train, key)
            return z, f, s

        return jax.vmap(one)(params, stats, keys)


class Case:
    """A compiled step and the state that it has come to."""

    def __init__(
        self, network: str, batch: int, size: int, members: int, devices: int, way=Population, **changes
    ):
        config = mutual.get_config(network)
        config.update(changes)
        config.members, config.devices, config.batch_size = members, devices, batch
        config = finalize(config)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
        labels = rng.integers(0, 100, batch).astype(np.int32)
        names = tuple(map(str, range(100)))
        data = Dataset('noise', images, labels, images, labels, names, (0.5,) * 3, (0.25,) * 3)
        population = way(config, 100, size, make_mesh(config))
        self.what = way.__name__, members, devices
        self.batch = jax.device_put({'image': images, 'label': labels}, population.sharding('data'))
        self.state = init_state(config, population)
        step = make_train_step(config, population, data, 100, self.state)
        start = time.perf_counter()
        self.step = step.lower(self.state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - start
        self.clocks: list[tuple[float, float]] = []
        self.run()

    def run(self):
        """Take a step."""
        start = time.perf_counter(), time.process_time()
        self.state, row = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, row))
        self.clocks.append((time.perf_counter() - start[0], time.process_time() - start[1]))

    def milliseconds(self) -> tuple[float, float]:
        """The median step but the first, by the clock and in all cores."""
        wall, cpu = (1e3 * statistics.median(seconds) for seconds in zip(*self.clocks[1:]))
        return wall, cpu

    def collectives(self) -> tuple[str, int]:
        """What a step exchanges between devices: '1 all-gather', and the bytes of the results on each."""
        found = re.findall(rf'= (.+?) ({COLLECTIVES})(?:-start)?\(', self.step.as_text())
        kinds = [kind for _, kind in found]
        arrays = [a for shapes, _ in found for a in re.findall(r'(\w+)\[([\d,]*)\]', shapes)]
        count = sum(SIZES[t] * int(np.prod([int(n) for n in dims.split(',') if n])) for t, dims in arrays)
        return ' + '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds)), count


def main(network: str = 'resnet20', batch: str = '64', size: str = '32', rounds: str = '9'):
    """Measure, print and append to experiments/results/members.csv."""
    shapes = network, int(batch), int(size)
    plan = [(k, 1) for k in (1, 2, 4, 8)] + [(4, n) for n in (2, 4) if n <= len(jax.devices())]
    plan += [(1, n) for n in (2, 4) if n <= len(jax.devices())]
    cases = [Case(*shapes, members, devices) for members, devices in plan]
    for _ in range(int(rounds)):
        for case in cases:
            case.run()
    mapped = Case(*shapes, 4, 1, Mapped)  # so slow that it is not one of the rounds
    mapped.run()
    one = cases[0].milliseconds()
    common = {**results.here(), 'network': network, 'batch': batch, 'image_size': size}
    rows = []
    for case in [*cases, mapped]:
        (way, members, devices), (collectives, count) = case.what, case.collectives()
        way = {'Population': 'loop', 'Mapped': 'vmap'}[way]
        (wall, cpu), (one_wall, one_cpu) = case.milliseconds(), one
        rows.append({
            **common,
            'way': way,
            'members': members,
            'devices': devices,
            'milliseconds': f'{wall:.1f}',
            'times_one_member': f'{wall / one_wall:.2f}',
            'cpu_milliseconds': f'{cpu:.1f}',
            'cpu_times_one_member': f'{cpu / one_cpu:.2f}',
            'compile_seconds': f'{case.compile_seconds:.1f}',
            'collectives': collectives,
            'bytes': count,
        })  # fmt: skip
        print(
            f'{way} K={members} on {devices}: {wall:9.1f} ms, {wall / one_wall:6.2f} times one member '
            f'(cpu {cpu / one_cpu:.2f}); compiled in {case.compile_seconds:.1f} s; '
            f'{collectives or "nothing"}, {count:,} bytes'
        )
    results.append('members', rows)


if __name__ == '__main__':
    run_words(main)
