"""Measure what packed ternary weights save and cost: python -m experiments.bench.packed [NETWORK BATCH…]

Runs a CIFAR-10 network with fresh weights through the function of `jaxcifar.load`: dense in float32 and
bfloat16, and with ternary kernels that stay packed in memory, at 2 bits and at five to a byte. The bytes of
weights and of scratch memory are those of the compiled program. Milliseconds a call are medians of turns,
without a GPU in the CPU time of one core. A row is appended to experiments/results/packed.csv after a
form's last turn.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from configs import single
from experiments import results
from experiments.bench.turns import Turn, clock, take_turns
from jaxcifar.config import saved
from jaxcifar.data.cifar import CIFAR
from jaxcifar.engine.quantize import dequantize, twn
from jaxcifar.export.classifier import Classifier
from jaxcifar.formats import packed
from jaxcifar.formats.portable import Portable
from jaxcifar.machine.command import run_words
from jaxcifar.models import build
from jaxcifar.runs.resolve import finalize

ROUNDS = 3


def member(network: str, form: str) -> Portable:
    """Return fresh weights: 'float32', 'bfloat16', or ternary in one of `packed.CODES`."""
    names, mean, std = CIFAR['cifar10']
    about = {
        'name': f'0_{network}',
        'network': network,
        'options': {},
        'precision': form if form == 'bfloat16' else 'float32',
        'classes': names.split(),
        'image_size': 32,
        'mean': mean,
        'std': std,
        'config': saved.to_dict(finalize(single.get_config(f'{network},cifar10'))),
    }
    variables = build(network, 10).init((0, 0))
    # Norms and biases stay float32.
    if form == 'bfloat16':
        cast = jax.tree.map(lambda leaf: leaf.astype(form) if leaf.ndim > 1 else leaf, variables)
        return Portable(about, cast)
    if form in packed.CODES:
        shown = jax.device_get(jax.tree.map(_ternary, variables['params']))
        variables = {**variables, 'params': packed.pack_tree(shown, form)}
    return Portable(about, variables)


def _ternary(leaf):
    """Return a kernel in ternary; the stem's and the classifier's, of 3 channels or no pixels, as is."""
    return dequantize(twn(leaf)) if leaf.ndim == 4 and leaf.shape[2] != 3 else leaf


def prepare(network: str, form: str, batch: int) -> tuple[Turn, dict[str, int]]:
    """Return a call's turn, and the bytes that the weights and the compiled program take."""
    model = Classifier([member(network, form)])
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    # Compiled beforehand: its memory analysis says what a call needs.
    program = model.function.lower(model.weights, images).compile()
    memory: Any = program.memory_analysis()
    sizes = {
        'weight_bytes': sum(leaf.nbytes for leaf in jax.tree.leaves(model.weights)),
        'scratch_bytes': memory.temp_size_in_bytes,
    }
    return partial(clock, partial(program, model.weights, images)), sizes


def main(network: str = 'resnet18', *batches: str):
    """Measure, append and print."""
    here = {**results.here_pinned(), 'jax': jax.__version__}
    print(f'{"weights":10} {"batch":>5} {"weights, MB":>12} {"scratch, MB":>12} {"ms a call":>10}')
    for batch in map(int, batches or ('1', '256')):
        # All forms of a batch are there before the first turn, and take turns with each other.
        forms = {form: prepare(network, form, batch) for form in ('float32', 'bfloat16', *packed.CODES)}
        for form, times in take_turns({form: turn for form, (turn, _) in forms.items()}, ROUNDS, warm=1):
            sizes, ms = forms[form][1], round(times.median('ms'), 1)
            row = {'network': network, 'form': form, 'batch': batch, **sizes, 'milliseconds': ms}
            results.append('packed', [here | row])
            weights, scratch = (f'{size / 1e6:12.2f}' for size in sizes.values())
            print(f'{form:10} {batch:5} {weights} {scratch} {ms:10.1f}', flush=True)


if __name__ == '__main__':
    results.pin()
    run_words(main)
