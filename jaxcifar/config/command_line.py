"""Read a run's command line, --config FILE --workdir FOLDER --config.FIELD=VALUE, and show its help."""

import argparse
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxcifar.config import fields as config_fields
from jaxcifar.config import shipped_configs, short_form
from jaxcifar.config.old_flags import translated
from jaxcifar.machine.errors import UserError, unknown
from jaxcifar.machine.text import show

# Exceptions that absl, ml_collections and Python's literal parser raise for a bad command line.
FAULTS = (flags.Error, AttributeError, KeyError, ImportError, OSError, TypeError, ValueError, SyntaxError,
          ArithmeticError, RecursionError, MemoryError)  # fmt: skip


def parse(argv: list[str]) -> tuple[ConfigDict, Path]:
    """Return (config, workdir) from a command line, program name first; `UserError` if it is invalid."""
    # The flags are local, because absl's global flags can be defined only once in a process.
    values, argv = flags.FlagValues(), shipped_configs.complete(argv)
    # ml_collections runs all config files in one module, where names of an earlier file would still exist.
    sys.modules.pop('config_config', None)
    config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
    flags.DEFINE_string('workdir', None, 'where the run is kept', flag_values=values)
    try:
        with shipped_configs.importable(argv):
            rest = values(argv)
            config, workdir = values['config'].value, values['workdir'].value or ''
            getattr(config, 'network', None)  # a file that could not be loaded raises here
    except FAULTS as error:
        raise _explain(error, argv) from error
    except UserError:
        raise
    except Exception as error:  # a config file is a program, which may raise anything
        raise _failure(error, argv) or UserError(f'the config file fails: {_named(error)}') from error
    if len(rest) > 1:
        raise UserError(f'expected flags, got {rest[1]!r}: a change is written --config.FIELD=VALUE')
    # An empty workdir, as from an unset shell variable, would be the current folder.
    if missing := ['--config'] * (not shipped_configs.given(argv)) + ['--workdir'] * (not workdir):
        raise _missing(missing)
    if not isinstance(config, ConfigDict):
        raise UserError(f"the config file's get_config() must return a ConfigDict, got {show(config)}")
    return config, Path(workdir).expanduser()  # a shell leaves the ~ of --workdir=~/runs to us


def parse_about(argv: list[str], workdir: str) -> tuple[ConfigDict, Path]:
    """Return what `parse` returns, for a command about a config, in the long form or the short one.

    workdir: the default if the command line names none.
    """
    return parse([argv[0], f'--workdir={workdir}', *short_form.long_form(argv[1:], workdir)])


def chosen(config, fields: Mapping) -> tuple[str, ConfigDict, ConfigDict]:
    """Return (name, config, the config with `fields` set) for a call from Python.

    config: a `ConfigDict`, whose name is '', or what --config takes. fields: as for `short_form.changed`.
    """
    name = str(config) if isinstance(config, (str, Path)) else ''
    if name:
        config, _ = parse(['jaxcifar.train', f'--config={name}', '--workdir=unused'])
    elif not isinstance(config, ConfigDict):
        raise UserError(f"expected a config's name, a file or a ConfigDict, got {show(config)}")
    return name, config, short_form.changed(config, fields)


def which_host(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the values of the multi-host flags, and the other arguments; `UserError` if they are invalid."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # These are taken out before absl sees them: it refuses flags that it does not know.
    parser.add_argument('--coordinator', default='')
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--process', type=int, default=0)
    place, others = parser.parse_known_args(argv)
    if place.processes < 1:
        raise UserError(f'--processes must be at least 1, got {place.processes}')
    if not 0 <= place.process < place.processes:
        raise UserError(f'--process must be from 0 to {place.processes - 1}, got {place.process}')
    if place.coordinator and not re.fullmatch(r'.+:\d+', place.coordinator):
        raise UserError(f'--coordinator must be HOST:PORT, got {show(place.coordinator)}')
    if place.processes > 1 and not place.coordinator:
        raise UserError('--processes: expected --coordinator HOST:PORT, that of process 0, got none')
    return place, others


def _explain(error: Exception, argv: list[str]) -> UserError:
    """Return what absl, ml_collections or the config file meant, in one line."""
    # The nearest cause comes first: the exception often names a consequence.
    meant = _failure(error, argv) or _misspelt_flag(argv) or _missing_file(argv) or _wrong_value(error, argv)
    if not meant and not shipped_configs.given(argv):
        meant = _missing(['--config'])
    if meant:
        return meant
    text = str(error)
    if 'get_config() takes 0 positional arguments' in text:
        return UserError('expected no argument for this config: leave out the colon and what is behind it')
    if "has no attribute 'get_config'" in text:
        return UserError('the config file has no get_config(), which must return a ConfigDict')
    if 'earlier failure to load' in text:  # neither a file that is there nor one called .py
        return UserError('--config must be a config file; python -m jaxcifar.main --help lists ours')
    if 'parsing config file' in text:  # a traceback, whose last line says what the file did
        return UserError(f'the config file fails: {show(text.strip().splitlines()[-1], 200)}')
    return UserError(show(text or type(error).__name__, 300))


def _missing(flags: list[str]) -> UserError:
    """Return the error for a command line without these flags."""
    configs = ', '.join(shipped_configs.names())
    example = '--config quickstart --workdir runs/q'
    return UserError(f'{" and ".join(flags)} must be given, as in {example}; configs: {configs}')


def _failure(error: BaseException, argv: list[str]) -> UserError | None:
    """Return the error of a config file, with its line; None if the exception is not from the file."""
    files = {Path(config.partition(':')[0]).resolve() for config in shipped_configs.given(argv)}
    places = [(error.filename or '', error.lineno)] if isinstance(error, SyntaxError) else []
    places += [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    # ml_collections replaces a TypeError by one whose text is the traceback.
    told = 'parsing config file' in str(error)
    places += re.findall(r'File "(.+)", line (\d+)', str(error)) if told else []
    for name, line in reversed(places):  # the innermost line of the file itself
        if Path(name).resolve() in files:
            what = show(str(error).strip().splitlines()[-1], 200) if told else _named(error)
            return UserError(f'the config file fails: {name}, line {line}: {what}')
    return None


def _named(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    text: object = error
    while isinstance(text, (AttributeError, KeyError)) and text.args:  # a KeyError's text is quoted
        text = text.args[0]
    return f'{type(error).__name__}: {show(" ".join(str(text).split()), 200)}'


def _misspelt_flag(argv: list[str]) -> UserError | None:
    """Return the error for an unknown field, for flags of other programs, or for a field given as a flag."""
    fields = config_fields.FIELDS
    flags = [a.removeprefix('--').partition('=')[0] for a in argv[1:] if a.startswith('--')]
    for field in (flag.removeprefix('config.') for flag in flags if flag.startswith('config.')):
        if field not in fields:
            return unknown('field', field, fields)
    if old := translated(argv[1:]):
        return old
    for flag in (flag for flag in flags if not flag.startswith('config.')):
        if meant := [f'--config.{field}' for field in short_form.meant(flag)]:
            return UserError(f'--{flag} is not a flag; did you mean {" or ".join(meant)}?')
    return None


def _missing_file(argv: list[str]) -> UserError | None:
    """Return the error for a config file that is not there, with the nearest shipped name."""
    # Whoever wrote .py meant a file, and gets the nearest shipped one.
    for path in re.findall(r'(\S+\.py)\b', ' '.join(argv[1:]).replace('=', ' ')):
        if not Path(path).exists():
            return unknown('config', path, [f'configs/{name}.py' for name in shipped_configs.names()])
    for name in (config.partition(':')[0] for config in shipped_configs.given(argv)):
        if not Path(name).exists():
            return unknown('config', name, shipped_configs.names())
    return None


def _wrong_value(error: Exception, argv: list[str]) -> UserError | None:
    """Return the error for a value that its flag cannot read."""
    flag = re.match(r'flag --config\.([\w.]+)=', str(error))
    if not flag or flag[1] not in config_fields.FIELDS:
        return None
    start = f'--config.{flag[1]}='
    # Of several such flags the last one counts.
    given = [a.removeprefix(start) for a in argv if a.startswith(start)] or [str(error)[flag.end() :]]
    return UserError(f'{flag[1]} must be {config_fields.FIELDS[flag[1]].expected()}, got {show(given[-1])}')


def usage(doc: str, words: list[str]) -> str:
    """Return what --help prints: the command, the shipped configs, and every field with its valid values.

    words: those after --help; only the fields or groups they name are printed. Raises `UserError` for others.
    """
    fields = {}
    for name, default, comment in documented_fields():
        takes = config_fields.FIELDS[name].described()
        fields[name] = f'  {name} = {default}{f"  ({takes})" if takes else ""}\n      {comment}'
    if words:
        return '\n'.join(fields[name] for name in _asked([*fields], words))
    lines = [doc, 'Configs:']
    lines += [f'  {name:24}{shipped_configs.summary(name)}' for name in shipped_configs.names()]
    groups = {name.rpartition('.')[0]: None for name in fields if '.' in name}
    lines += ['', f'Fields; --help FIELD prints one, --help GROUP those of {", ".join(groups)}:']
    group = None
    for name, text in fields.items():
        # Fields of one group stand together, under its name.
        before, group = group, name.rpartition('.')[0]
        if group != before:
            lines += ['', f'{group}:' if group else 'of the whole run:']
        lines.append(text)
    return '\n'.join(lines)


def _asked(fields: list[str], words: list[str]) -> list[str]:
    """Return the fields that words name: a field, all fields of a group, or fields so called in any group."""
    asked = set()
    for word in (word.removeprefix('--').removeprefix('config.') for word in words):
        meant = [name for name in fields if f'{name}.'.startswith(f'{word}.')]
        meant = meant or [name for name in fields if name.endswith(f'.{word}')]
        if not meant:
            raise unknown('field', word, fields)
        asked |= {*meant}
    return [name for name in fields if name in asked]


def documented_fields() -> Iterator[tuple[str, str, str]]:
    """Yield (name, default, comment) of each field, in the order of declaration."""
    # The comments of the declarations are the help: there is no second text to keep in step.
    for line in Path(str(config_fields.__file__)).read_text().splitlines():
        code, mark, comment = line.strip().partition('  # ')
        if mark and code.startswith('c.'):
            name = code.removeprefix('c.').partition(' = ')[0]
            default = config_fields.FIELDS[name].default
            yield name, 'unset' if default is None else repr(default), comment
