"""Print the table of networks: python -m jaxcifar.models [--classes 100] [--size 32] [--stem imagenet]"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxcifar.machine.command import run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.profile import count_flops
from jaxcifar.models import NETWORKS, build, has_choice
from jaxcifar.models.convolution import Conv
from jaxcifar.models.layers import STEMS


def describe(name: str, num_classes: int = 100, size: int = 32, **options) -> dict:
    """Return parameters, FLOPs of one image's forward pass (2 a multiply-add), D, and the maps' sizes."""
    network = build(name, num_classes, size, **options)
    image = jnp.zeros((1, size, size, 3))
    variables = network.shapes()
    maps: list[int] = []

    def watch(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, Conv) and out.shape[1] not in maps:
            maps.append(out.shape[1])
        return out

    with nn.intercept_methods(watch):
        traced = jax.jit(lambda v, x: network.apply(v, x, False)[0]).trace(variables, image)
    _, features = traced.out_info
    return {
        'network': name,
        'parameters': sum(x.size for x in jax.tree.leaves(variables['params'])),
        'flops': count_flops(traced.jaxpr.jaxpr),
        'features': features.shape[-1],
        'maps': maps,
    }


def main():
    """Run the command line."""
    usage = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser('python -m jaxcifar.models', None, __doc__, formatter_class=usage)
    parser.add_argument('--classes', type=int, default=100)
    parser.add_argument('--size', type=int, default=32, help='pixels of an image')
    parser.add_argument('--stem', choices=STEMS, help='print those that have this stem (all, with their own)')
    args = parser.parse_args()
    if min(args.classes, args.size) < 1:
        parser.error('--classes and --size must be at least 1')
    options = {'stem': args.stem} if args.stem else {}
    title = f'{args.classes} classes, {args.size}x{args.size} images'
    table = Table(box=None, title=title, title_justify='left')
    for column in ('network', 'parameters', 'MFLOP an image', 'features D', 'map sizes'):
        table.add_column(column, justify='left' if column == 'network' else 'right')
    for name in NETWORKS:
        if args.stem and not has_choice(name, 'stem'):
            continue
        try:
            row = describe(name, args.classes, args.size, **options)
        except UserError as error:  # its images must be larger
            table.add_row(name, str(error.fault))
            continue
        sizes = ' '.join(map(str, row['maps']))
        flops = f'{row["flops"] / 1e6:,.0f}'
        table.add_row(name, f'{row["parameters"]:,}', flops, str(row['features']), sizes)
    Console().print(table)


if __name__ == '__main__':
    run_command(main)
