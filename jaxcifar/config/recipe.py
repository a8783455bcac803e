"""Say which fields keep the values of a recipe made for another network or data set."""

import contextlib
import io

from ml_collections import ConfigDict

from jaxcifar.config import shipped_configs
from jaxcifar.config.command_line import parse
from jaxcifar.config.fields import get_config
from jaxcifar.config.values import flatten

# What people tune for a network. ALWAYS is always shown; of TUNED, only the fields that the recipe sets.
ALWAYS = ('epochs', 'batch_size', 'optimizer.lr', 'optimizer.weight_decay')
TUNED = ('augment', 'label_smoothing', 'ema', 'optimizer', 'schedule', 'model', 'early_stopping')
MADE_FOR = ('network', 'dataset')


def stays(name: str, recipe: ConfigDict, config: ConfigDict) -> list[str]:
    """Return a line for each of network and dataset in which `config` differs from the recipe `name`.

    name: what --config takes, 'mutual:resnet32'. Only shipped recipes are made for a given network.
    """
    if not shipped_configs.is_shipped(name):
        return []
    before, now, plain = flatten(recipe), flatten(config), flatten(get_config())
    tuned = [f for f in before if f in ALWAYS or (f.startswith(TUNED) and before[f] != plain[f])]
    kept = ', '.join(f'{f}={now[f]}' for f in tuned if now[f] == before[f] is not None)
    return [
        f'{field}={now[field]}: {kept or "no fields"} keep the values that {name} sets for {before[field]}'
        for field in MADE_FOR
        # A file that sets nothing is not made for any network.
        if now[field] != before[field] and before != plain
    ]


def of_command_line(argv: list[str], config: ConfigDict) -> list[str]:
    """Return the lines of `stays` for a command line and the config that it makes."""
    name = (shipped_configs.given(argv) or [''])[-1]
    changed = any(word.startswith(tuple(f'--config.{field}' for field in MADE_FOR)) for word in argv)
    # A config file is a program. Only a shipped one is run twice, because it just returns a config.
    if not changed or not shipped_configs.is_shipped(name):
        return []
    # The file has already printed its remarks about the environment.
    with contextlib.redirect_stderr(io.StringIO()):
        recipe, _ = parse([argv[0], f'--config={name}', '--workdir=unused'])
    return stays(name, recipe, config)
