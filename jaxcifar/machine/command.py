"""Frame every command: faults end in one line on stderr and an exit status, not a traceback."""

import argparse
import contextlib
import errno
import inspect
import io
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from jaxcifar.machine.errors import EXIT_PREEMPTED, Preempted, UserError, unknown
from jaxcifar.machine.files import remove_empty_folders
from jaxcifar.machine.memory import restart_in_huge_pages
from jaxcifar.machine.text import one_line

# As text, because tensorstore wraps the system's message in a ValueError.
FULL = tuple(os.strerror(e) for e in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# Checked before NO_MEMORY, because tensorstore reports these as an exhausted resource, too.
MANY_FILES = tuple(os.strerror(e) for e in (errno.EMFILE, errno.ENFILE))
NO_FILES = 'too many open files: raise the limit, as by ulimit -n 65536, or set fewer data.workers'
NO_SPACE = 'the disk is full; earlier checkpoints are kept, so make room and run it again'
NO_MEMORY = (
    'out of memory; in a new workdir try half the batch_size, or optimizer.accumulate=2, which processes '
    'the batch in two parts; if evaluation ran out of memory, set a smaller eval.batch_size'
)
# Modules that python -m runs; the others do nothing by themselves.
COMMANDS = ('main', 'evaluate', 'predict', 'export', 'report', 'calibrate', 'reject', 'torch_weights',
            'doctor', 'models', 'preview', 'schedule', 'pictures')  # fmt: skip


class RunParser(argparse.ArgumentParser):
    """Parse the words of a command about one run, whose first word may stand for --workdir."""

    run_flags: tuple[str, ...] = ('--workdir',)

    def parse_args(self, args=None, namespace=None):
        """Return the parsed arguments, by default those of sys.argv."""
        words = [*(sys.argv[1:] if args is None else args)]
        named = any(word.partition('=')[0] in self.run_flags for word in words)
        if words and not words[0].startswith('-') and not named:
            words[0] = f'--workdir={words[0]}'
        return super().parse_args(words, namespace)


def command_parser(module: str, doc: str | None, run: str = '', *aliases: str) -> argparse.ArgumentParser:
    """Return the parser of a command, python -m MODULE, whose --help starts with its file's docstring.

    run: what --workdir is, for a command that requires one and also accepts it as its first word. aliases:
      other names of that flag.
    """
    style = argparse.RawDescriptionHelpFormatter
    kind = RunParser if run else argparse.ArgumentParser
    # Usage and errors name the command as it was called.
    name = module.removeprefix('jaxcifar.')
    called = f'python -m {module}' if name == module else command_line_for(name)
    parser = kind(called, description=doc, formatter_class=style)
    if isinstance(parser, RunParser):
        where = f'{run}; or the first word without the flag'
        parser.run_flags = '--workdir', *aliases
        parser.add_argument(*parser.run_flags, type=a_path, required=True, metavar='RUN', help=where)
    return parser


def a_path(text: str) -> Path:
    """Return the path that a word of a command line names: a shell leaves the ~ of --flag=~/file to us."""
    return Path(text).expanduser()


def command_line_for(command: str, *words) -> str:
    """Return a command line to copy into a shell, in the form in which this process was started."""
    start = ['jaxcifar', command] if is_short() else ['python', '-m', f'jaxcifar.{command}']
    return shlex.join([*start, *map(str, words)])


def is_short() -> bool:
    """Return whether this process was started as `jaxcifar COMMAND`, or by python -m jaxcifar."""
    # The command has changed sys.argv by now: Python's own command line is the one typed.
    return any(Path(word).name == 'jaxcifar' for word in sys.orig_argv[1:3])


def slurm_tasks() -> int:
    """Return how many processes Slurm's step has started, 1 without Slurm."""
    return int(os.environ.get('SLURM_STEP_NUM_TASKS', 1))


def refuse_other_modules():
    """Exit with a one-line error if python -m was given a module of the package that is not a command.

    Python imports the package before it finds the module; until then, sys.argv[0] is '-m'.
    """
    words = ' '.join(sys.orig_argv[1:])
    asked = re.search(r'(?:^|\s)-m\s*jaxcifar\.([\w.]+)', words) if sys.argv[:1] == ['-m'] else None
    if asked and asked[1].removesuffix('.__main__') not in COMMANDS:
        print(f'error: {unknown("command", asked[1], COMMANDS)}', file=sys.stderr)
        sys.exit(1)


def run_command(main: Callable[[], None]):
    """Call `main` and exit: 0 when done, 1 on an error that the user can fix, 75 when stopped and saved."""
    sys.unraisablehook = _hook
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')  # a terminal without ± must not end a training
    try:
        main()
    except Preempted as stop:
        _leave(str(stop), EXIT_PREEMPTED)
    except KeyboardInterrupt as stop:
        _leave(str(stop), 130)  # 128 + SIGINT, as shells report it
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f'error: {one_line(line)}', file=sys.stderr)
        sys.exit(1)


def _leave(words: str, status: int):
    """Print the words and exit at once: everything is closed, but XLA may still be compiling in a thread.

    A normal exit would end that thread while it is in C++ code, which aborts the process.
    """
    if words:
        print(words, file=sys.stderr)
    remove_empty_folders()
    for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(status)


def asked_for_help(doc: str | None) -> bool:
    """Print a command's docstring if the command line asks for help, and return whether it does."""
    if not {'--help', '-h'} & set(sys.argv[1:]):
        return False
    print(str(doc).strip())
    return True


def run_words(main: Callable):
    """Call `run_command` on a `main` that takes the command line's words; --help prints the docstring."""
    if not asked_for_help(sys.modules['__main__'].__doc__):
        restart_in_huge_pages()  # so that a measured step runs as in training
        run_command(lambda: _call(main, sys.argv[1:]))


def _call(main: Callable, words: list[str]):
    """Call `main` with words; `UserError` for too many of them, and where one should be a number."""
    try:
        inspect.signature(main).bind(*words)
    except TypeError:
        wanted = ' '.join(inspect.signature(main).parameters)
        raise UserError(f'expected at most the words {wanted}, got {" ".join(words)}: see --help') from None
    try:
        main(*words)
    except ValueError as error:
        if not str(error).startswith(('invalid literal for int()', 'could not convert string to float')):
            raise
        raise UserError(f'expected a number, got {str(error).rpartition(": ")[2]}: see --help') from None


def _hook(fault):
    """Report an error, except the one that tensorstore's threads add after a save has failed and raised."""
    if str(fault.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(fault)


def explain(error: BaseException) -> str | None:
    """Return one line about an error that the user can fix, or None for a bug in the program."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if any(fault in text for fault in MANY_FILES):
        return NO_FILES
    if any(fault in text for fault in FULL):
        return NO_SPACE
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text or 'out of memory' in text.lower():
        return NO_MEMORY
    if isinstance(error, OSError) and error.strerror:
        return f'{error.filename}: {error.strerror}' if error.filename else error.strerror
    return None
