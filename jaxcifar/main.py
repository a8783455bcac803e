"""Train, or go on training: python -m jaxcifar.main --config FILE[:ARGUMENT] --workdir FOLDER

The same command again resumes; a finished run says so. Change a field with --config.FIELD=VALUE,
for example --config.optimizer.lr=.05 or, one number a member, --config.optimizer.lr=.1,.05

On several hosts each runs the command, with --coordinator HOST:PORT (of the first) --processes N
--process I (from 0) added; under Slurm's srun without. They must see the same workdir.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxcifar import memory
from jaxcifar.cli import run_command
from jaxcifar.errors import UserError, unknown
from jaxcifar.members import flatten

ROOT = Path(__file__).parent.parent


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
    from configs import base

    fields = flatten(base.get_config())
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


def usage() -> str:
    """What --help prints: the command, the shipped configs, and every field with its comment."""
    lines = [str(__doc__), 'Configs:']
    for name in _shipped():
        doc = ast.get_docstring(ast.parse((ROOT / name).read_text())) or ''
        lines.append(f'  {name:24}{doc.splitlines()[0]}')
    lines += ['', 'Fields (configs/base.py):']
    lines += [f'  {field} = {default}\n      {comment}' for field, default, comment in documented_fields()]
    return '\n'.join(lines)


def documented_fields() -> Iterator[tuple[str, str, str]]:
    """(field, its default, its comment) of configs/base.py, in its order."""
    for line in (ROOT / 'configs/base.py').read_text().splitlines():
        code, mark, comment = line.strip().partition('  # ')
        if mark and code.startswith('c.'):
            field, _, default = code.removeprefix('c.').partition(' = ')
            for maker in ('number_or_list', 'placeholder'):
                default = default.removeprefix(maker)
            default = 'unset' if '(int' in default or '(str' in default or '(object' in default else default
            yield field, default.strip('()') if default.count(',') == 0 else default, comment


def main():
    """The command line."""
    sys.path[:0] = ['', str(ROOT)]  # config files find each other from the current folder, and ours
    if {'--help', '-h', '--helpfull'} & set(sys.argv[1:]):
        print(usage())
        return
    place, argv = which_host(sys.argv)
    config, workdir = parse(argv)
    from jaxcifar import hosts  # JAX takes a second: not before the command line is right
    from jaxcifar.train import train

    with hosts.joined(**vars(place)):
        train(config, workdir)


if __name__ == '__main__':
    memory.restart_in_huge_pages()
    run_command(main)
