"""Train, or go on training: python -m jaxcifar.main --config FILE[:ARGUMENT] --workdir FOLDER

The same command again resumes; a finished run says so. Change a field with --config.FIELD=VALUE,
for example --config.optimizer.lr=.05 or, one number a member, --config.optimizer.lr=.1,.05
"""

import ast
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxcifar.cli import run_command
from jaxcifar.errors import UserError, unknown


def parse(argv: list[str]):
    """(config, workdir) from a command line, program name first."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values)
    flags.DEFINE_string('workdir', None, 'where the run is kept', flag_values=values)
    try:
        rest = values(argv)
    except UserError:
        raise
    except Exception as error:  # absl, ml_collections and the file itself each raise their own
        raise _explain(error, argv) from error
    if len(rest) > 1:
        raise UserError(f'{rest[1]!r} is not a flag; changes are written --config.field=value')
    for name in ('config', 'workdir'):
        if values[name].value is None:
            raise UserError(f'--{name} is missing; see python -m jaxcifar.main --help')
    return values['config'].value, Path(values['workdir'].value)


def _explain(error: Exception, argv: list[str]) -> UserError:
    from configs import base
    from jaxcifar.config import flatten

    fields = flatten(base.get_config())
    for argument in argv[1:]:
        field, _, _ = argument.removeprefix('--').partition('=')
        if argument.startswith('--config.') and field.removeprefix('config.') not in fields:
            return unknown('field', field.removeprefix('config.'), fields)
    if isinstance(error, FileNotFoundError) or 'FileNotFoundError' in str(error):
        return UserError(f'no such config: {error}; the shipped ones are {", ".join(_shipped())}')
    return UserError(' '.join(str(error).split()))


def _shipped() -> list[str]:
    return [f'configs/{p.name}' for p in sorted(Path('configs').glob('[!_]*.py')) if p.stem != 'base']


def usage() -> str:
    """What --help prints: the command, the shipped configs, and every field with its comment."""
    lines = [str(__doc__), 'Configs:']
    for name in _shipped():
        doc = ast.get_docstring(ast.parse(Path(name).read_text())) or ''
        lines.append(f'  {name:24}{doc.splitlines()[0]}')
    lines += ['', 'Fields (configs/base.py):']
    for line in Path('configs/base.py').read_text().splitlines():
        code, mark, comment = line.strip().partition('  # ')
        if mark and code.startswith('c.'):
            field, _, default = code.removeprefix('c.').partition(' = ')
            for maker in ('number_or_list', 'placeholder'):
                default = default.removeprefix(maker)
            lines.append(f'  {field} = {default.strip("()")}\n      {comment}')
    return '\n'.join(lines)


def main():
    """The command line."""
    sys.path.insert(0, '')  # config files are found, and find each other, from the current folder
    if {'--help', '-h', '--helpfull'} & set(sys.argv[1:]):
        print(usage())
        return
    config, workdir = parse(sys.argv)
    from jaxcifar.train import train  # JAX takes a second: not before the command line is right

    train(config, workdir)


if __name__ == '__main__':
    run_command(main)
