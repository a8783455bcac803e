"""Train one CIFAR network, or K that share, compete, teach or fuse with each other, in one compiled JAX step.

Importing this package imports nothing large: JAX comes with the first call.
"""

from jaxcifar.machine.command import refuse_other_modules

__version__ = '0.1.0'
refuse_other_modules()


def train(config, workdir=None, **fields):
    """Train or resume a run in `workdir`, and return it: train('mutual:resnet32', members=4).

    config: a shipped config's name or a config file, 'quickstart' or 'mine.py:argument', or a `ConfigDict`.
    workdir: where the run is kept; by default a new folder in runs/, whose name is printed.
    fields: changes, by the same names as on the command line but without dashes: lr=.05. A name with a dot
      is written **{'fusion.dropout': .1}.

    The run has `history`, `results`, `config`, `workdir` and `load()`, and is also the dict of its
    results.json: see `jaxcifar.run.Run`. Raises `UserError` for errors that the user can fix.
    """
    from jaxcifar.config import command_line, recipe, short_form, unused
    from jaxcifar.config.fields import check_values
    from jaxcifar.run import Run

    name, before, config = command_line.chosen(config, fields)
    check_values(config)
    # JAX takes a second: not before the config is right.
    from jaxcifar import loop
    from jaxcifar.machine import hosts

    lines = recipe.stays(name, before, config)
    lines += unused.without_effect(config, map(short_form.named, fields))
    if workdir is None:
        workdir = short_form.make_workdir(name or f'{config.network}-{config.dataset}', not hosts.alone())
        lines = [f'workdir: {workdir}', *lines]
    if lines and hosts.is_first():
        print(*lines, sep='\n', flush=True)
    return Run(workdir, loop.train(config, workdir))


def open(workdir):
    """Return the run in a folder, finished or not, as `train` does.

    Raises `UserError` where there is none.
    """
    from jaxcifar.run import Run

    return Run(workdir)


def load(path, member=None, dataset=None):
    """Return trained networks: predict(images) classifies images; they can also be called on arrays.

    See `jaxcifar.export.classifier.load`.
    """
    from jaxcifar.export import classifier

    return classifier.load(path, member, dataset)
