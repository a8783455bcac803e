"""Say what stays as it was where a recipe that was made for one network or data set is given another."""

import contextlib
import io
from itertools import pairwise
from pathlib import Path

from ml_collections import ConfigDict

from jaxcifar.config.command_line import parse
from jaxcifar.config.fields import get_config
from jaxcifar.config.values import flatten
from jaxcifar.machine.errors import UserError

# What people tune for a network: shown always, and of these groups what the recipe sets.
ALWAYS = ('epochs', 'batch_size', 'optimizer.lr', 'optimizer.weight_decay')
TUNED = ('augment', 'label_smoothing', 'ema', 'optimizer', 'schedule', 'model', 'early_stopping')


def named(argv: list[str]) -> str:
    """Return what --config is on a command line, '' without it."""
    given = [word.removeprefix('--config=') for word in argv if word.startswith('--config=')]
    given += [value for flag, value in pairwise(argv) if flag == '--config']
    return given[-1] if given else ''


def stays(name: object, config: ConfigDict) -> list[str]:
    """Return a line for network and dataset, where `config` has others than the recipe called `name`.

    name: what --config takes, 'mutual:resnet32'; anything else has no recipe, and so no line.
    """
    recipe = _recipe(str(name)) if name and isinstance(name, (str, Path)) else None
    plain = flatten(get_config())
    # A file that sets nothing has no recipe that could be another's.
    if recipe is None or flatten(recipe) == plain:
        return []
    return [
        _line(str(name), field, flatten(recipe), flatten(config), plain)
        for field in ('network', 'dataset')
        if recipe[field] != config[field]
    ]


def _line(name: str, field: str, before: dict, now: dict, plain: dict) -> str:
    """Return which fields stay those of the recipe, and the argument that brings others where one does."""
    was, new = before[field], now[field]
    better = _with_word(name, was, new)
    own = flatten(_recipe(better) or {})
    # Where the config knows this network, what it would set otherwise is all that matters.
    differ = [f for f in own if f != field and own[f] != before[f]] if own.get(field) == new else []
    tuned = [f for f in before if f in ALWAYS or (f.startswith(TUNED) and before[f] != plain[f])]
    kept = ', '.join(f'{f}={now[f]}' for f in differ or tuned if now[f] == before[f] is not None)
    hint = f'; --config={better} sets {", ".join(f"{f}={own[f]}" for f in differ)}' if differ else ''
    return f'{field}={new}: {kept or "no fields"} stay those of {name} for {was}{hint}'


def _with_word(name: str, was: str, new: str) -> str:
    """Return a config's name with `new` in its argument, in the place of `was` if that is there."""
    file, _, argument = name.partition(':')
    words = [word for word in argument.split(',') if word and word != was]
    return f'{file}:{",".join([new, *words])}'


def _recipe(name: str) -> ConfigDict | None:
    """Return a config as its file makes it, without changes; None where it takes no such argument."""
    # Whatever the file prints, it has printed before.
    with contextlib.suppress(UserError), contextlib.redirect_stderr(io.StringIO()):
        return parse(['', f'--config={name}', '--workdir=unused'])[0]
    return None
