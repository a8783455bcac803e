"""The command line of a run, --config FILE[:ARGUMENT] --workdir FOLDER --config.FIELD=VALUE, and its help."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxcifar.config import fields as config_fields
from jaxcifar.config.members import flatten
from jaxcifar.machine.errors import UserError, unknown

ROOT = Path(__file__).parent.parent.parent


def parse(argv: list[str]):
    """(config, workdir) from a command line, program name first."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values)
    flags.DEFINE_string('workdir', None, 'where the run is kept', flag_values=values)
    try:
        rest = values(argv)
        config, workdir = values['config'].value, values['workdir'].value
        if config is not None:
            config.network  # noqa: B018  a file that could not be loaded raises here
    except (flags.Error, AttributeError, KeyError, ImportError, OSError, TypeError, ValueError) as error:
        raise _explain(error, argv) from error
    if len(rest) > 1:
        raise UserError(f'{rest[1]!r} is not a flag; changes are written --config.field=value')
    if config is None or workdir is None:
        raise UserError('--config and --workdir are needed; see python -m jaxcifar.main --help')
    return config, Path(workdir)


def which_host(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the flags say of several hosts, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--coordinator', default='')
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--process', type=int, default=0)
    return parser.parse_known_args(argv)


def _explain(error: Exception, argv: list[str]) -> UserError:
    """What absl, ml_collections and the config file meant."""
    fields = flatten(config_fields.get_config())
    for argument in argv[1:]:
        flag = argument.removeprefix('--').partition('=')[0]
        field = flag.removeprefix('config.')
        if field != flag and field not in fields:
            return unknown('field', field, fields)
        meant = [f'--config.{f}' for f in fields if flag in (f, f.rpartition('.')[2])]
        meant = meant or ['--config.network'] * (flag == 'model')
        if argument.startswith('--') and meant:
            return UserError(f'--{flag} is not a flag; did you mean {" or ".join(meant)}?')
    for path in re.findall(r'(\S+\.py)\b', ' '.join(argv[1:]).replace('=', ' ')):
        if not Path(path).exists():
            if path in _shipped():
                return UserError(f'{path} is not in this folder; it is {ROOT / path}')
            return unknown('config', path, _shipped())
    if 'get_config() takes 0 positional arguments' in str(error):
        return UserError('this config takes no argument: leave out the colon and what is behind it')
    if 'earlier failure to load' in str(error):  # neither a file that is there nor one called .py
        return UserError('--config is not a config file; see python -m jaxcifar.main --help')
    return UserError(' '.join(str(error).split()))


def _shipped() -> list[str]:
    return [f'configs/{p.name}' for p in sorted((ROOT / 'configs').glob('[!_]*.py')) if p.stem != 'base']


def usage(doc: str) -> str:
    """What --help prints: the command, the shipped configs, and every field with its comment."""
    lines = [doc, 'Configs:']
    for name in _shipped():
        doc = ast.get_docstring(ast.parse((ROOT / name).read_text())) or ''
        lines.append(f'  {name:24}{doc.splitlines()[0]}')
    lines += ['', 'Fields (jaxcifar/config/fields.py):']
    lines += [f'  {field} = {default}\n      {comment}' for field, default, comment in documented_fields()]
    return '\n'.join(lines)


def documented_fields() -> Iterator[tuple[str, str, str]]:
    """(field, its default, its comment) of the fields, in the order of `fields.get_config`."""
    for line in Path(str(config_fields.__file__)).read_text().splitlines():
        code, mark, comment = line.strip().partition('  # ')
        if mark and code.startswith('c.'):
            field, _, default = code.removeprefix('c.').partition(' = ')
            for maker in ('number_or_list', 'placeholder'):
                default = default.removeprefix(maker)
            default = 'unset' if '(int' in default or '(str' in default or '(object' in default else default
            yield field, default.strip('()') if default.count(',') == 0 else default, comment
