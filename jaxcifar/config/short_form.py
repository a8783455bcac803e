"""Read the short form of a training's command line: CONFIG --members 4 --lr .05."""

import copy
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from ml_collections import ConfigDict

from jaxcifar.config.fields import FIELDS
from jaxcifar.config.old_flags import is_old, translated
from jaxcifar.config.shipped_configs import names
from jaxcifar.machine.command import slurm_tasks
from jaxcifar.machine.errors import UserError, ending_in, unknown
from jaxcifar.machine.files import make_new_folder

EXAMPLE = 'jaxcifar train quickstart'
SWITCHES = ('--verbose',)  # flags without a value
PASSED_ON = ('workdir', 'coordinator', 'processes', 'process')  # flags that are no fields


def long_form(words: list[str], workdir: str) -> list[str]:
    """Return the long form of a command line about a config, which is in either form or empty.

    workdir: the default for a short form that names none.
    """
    is_long = any(re.match(r'--config\b', word) for word in words)
    # A short form may contain --config.FIELD, too; it is recognised by a config as its first word.
    alone = words and not words[0].startswith('--')
    return spell_out(words, workdir) if alone or (words and not is_long) else words


def spell_out(words: list[str], workdir: str = '', new: Callable[..., Path] | None = None) -> list[str]:
    """Return the long form, --config=CONFIG --workdir=FOLDER --config.FIELD=VALUE …, of the words.

    A field needs its group only if its last name is in several groups; among these, optimizer is the default.
    Without --workdir the run is kept in `workdir`, or in what `new` returns, by default `new_workdir`. Raises
    `UserError` for a flag that is not a field, or has no value.
    """
    switches = [word for word in words if word in SWITCHES]
    words = [word for word in words if word not in SWITCHES]
    names_of_flags = [word[2:].partition('=')[0] for word in words if word.startswith('--')]
    # Old flags that are also fields here keep their meaning; others are translated, not guessed.
    if any(is_old(flag) and not meant(flag) for flag in names_of_flags) and (old := translated(words)):
        raise old
    given_flags, positional = _split(words)
    if len(positional) != 1:
        given = ' '.join(positional) or 'none'
        raise UserError(f'expected one config, got {given}; configs are {", ".join(names())}: {EXAMPLE}')
    # The last of two equal flags wins, as in the long form.
    flags = {_field(flag): value for flag, value in given_flags}
    if '--workdir' not in flags:
        several = '--coordinator' in flags or flags.get('--processes', '1') != '1' or slurm_tasks() > 1
        flags['--workdir'] = workdir or str((new or new_workdir)(positional[0], several))
    return [f'--config={positional[0]}', *(f'{flag}={value}' for flag, value in flags.items()), *switches]


def changed(config: ConfigDict, values: Mapping) -> ConfigDict:
    """Return a copy of the config with fields set by the same names, {'lr': .05, 'fusion.dropout': .1}.

    Numpy numbers and arrays, lists and paths become Python's numbers, tuples and text. Raises `UserError` for
    an unknown field or an invalid value.
    """
    config = copy.deepcopy(config)
    for name, value in values.items():
        if is_old(name) and not meant(name) and (old := translated([f'--{name}', str(value)])):
            raise old
        field = named(name)
        declared = FIELDS[field]
        value = _plain(value)
        # A field without a default is filled in later, and may be asked to be.
        if value is not None or declared.default is not None:
            declared.check(field, value)
        # The command line reads 1 as the float 1.0 too, where a field takes one float.
        if declared.type is float and isinstance(value, int) and not declared.shape:
            value = float(value)
        # … and 100 as a list of one. The value is checked: a run's config may hold a number for a list.
        if declared.shape in ('list', 'pair') and value is not None and not isinstance(value, tuple):
            value = (value,)
        with config.ignore_type():
            config.update_from_flattened_dict({field: value})
    return config


def _plain(value):
    """Return numpy's numbers and arrays, lists and paths as Python's numbers, tuples and text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    value = value.tolist() if hasattr(value, 'tolist') else value
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def new_workdir(config: str, several_hosts: bool = False) -> Path:
    """Return a folder in runs/ that does not exist yet, named after the config and the current minute.

    Raises `UserError` for several hosts: each has its own clock, and may see other folders.
    """
    if several_hosts:
        raise UserError('expected --workdir for several hosts, got none: give all the same folder')
    name = re.sub(r'[^\w.+-]+', '-', config.removesuffix('.py')).strip('-.')
    path = Path('runs') / f'{name}-{datetime.now():%Y-%m-%d-%H%M}'
    others = (path.with_name(f'{path.name}-{i}') for i in range(2, 1000))
    return path if not path.exists() else next(p for p in others if not p.exists())


def make_workdir(config: str, several_hosts: bool = False) -> Path:
    """Make the folder of `new_workdir` and return it; no run that starts in the same minute gets the same."""
    while True:
        path = new_workdir(config, several_hosts)
        try:
            make_new_folder(path)
            return path
        except FileExistsError:  # by another process, a moment ago
            if not path.exists():
                raise


def _split(words: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the (flag, value) pairs, written as --flag=value or --flag value, and the other words."""
    flags: list[tuple[str, str]] = []
    positional: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith('--'):
            if re.match('-[A-Za-z]', word):
                raise UserError(f'expected two dashes before a flag, got {word}: write -{word}')
            positional.append(word)
            continue
        flag, equals, value = word[2:].partition('=')
        if not equals:
            value = next(rest, '')
            # Taking the next flag as a value would hide the one that was forgotten.
            if not value or value.startswith('--'):
                raise UserError(f'--{flag} needs a value: --{flag}=VALUE')
        flags.append((flag, value))
    return flags, positional


def _field(flag: str) -> str:
    """Return the long spelling of a flag, --config.optimizer.momentum of momentum."""
    return f'--{flag}' if flag in PASSED_ON else f'--config.{named(flag, "--{}")}'


def named(name: str, spelling: str = '{}') -> str:
    """Return the field that a name means; `UserError`, using `spelling`, if it means none or several."""
    fields = meant(name)
    if len(fields) > 1:
        several = ' or '.join(spelling.format(field) for field in fields)
        raise UserError(f'{spelling.format(name)} is in several groups: expected {several}')
    if not fields:
        raise unknown('field', name.removeprefix('config.'), FIELDS)
    return fields[0]


def meant(flag: str) -> list[str]:
    """Return the fields that a flag may mean: itself, its group's name, or those whose last name it is."""
    name = flag.removeprefix('config.')
    # --optimizer adamw and --schedule linear: a group is called by the name in it.
    for field in (name, f'{name}.name'):
        if field in FIELDS:
            return [field]
    fields = ending_in(name, FIELDS)
    if f'optimizer.{name}' in fields:  # lr, clip and weight_decay are the members' own, not the head's
        return [f'optimizer.{name}']
    return fields
