"""Train networks and use them: jaxcifar COMMAND …

  train CONFIG [--FIELD VALUE …]  train a run, or continue the one in --workdir
  schedule, preview, doctor       plot the learning rate, show the images, check for problems; of CONFIG
  evaluate RUN…, report RUN…      score runs on test images, write a page about runs
  pictures RUN                    plot curves, confusion matrix and mistakes of a run again
  predict RUN IMAGE…              classify images
  export, calibrate, reject RUN   export weights, fit temperatures, compute rejection curves
  models, torch_weights           list the networks, convert weights from and to PyTorch

Try:

  jaxcifar train quickstart --workdir runs/quickstart
  jaxcifar evaluate runs/quickstart
  jaxcifar train mutual:resnet32 --members 4 --epochs 30

jaxcifar COMMAND --help describes one command, jaxcifar train --help FIELD one field.
"""

import importlib
import runpy
import sys

from jaxcifar import __version__
from jaxcifar.config.short_form import make_workdir, spell_out
from jaxcifar.machine import memory, status
from jaxcifar.machine.command import COMMANDS as MODULES
from jaxcifar.machine.command import run_command
from jaxcifar.machine.errors import unknown

COMMANDS = tuple('train' if name == 'main' else name for name in MODULES)

# What takes seconds to import is imported where a line can say so.
NETWORKS_OPEN = ('evaluate', 'predict', 'export', 'calibrate')


def main():
    """Run a command as `python -m jaxcifar.COMMAND` does."""
    words = sys.argv[1:]
    if not words or words[0] in ('--help', '-h', 'help'):
        print(str(__doc__).strip())
        return
    if words[0] in ('--version', 'version'):
        print(__version__)
        return
    command, *rest = words
    if command not in COMMANDS:
        raise unknown('command', command, COMMANDS)
    if command == 'train' and not {'--help', '-h'} & set(rest):
        memory.restart_in_huge_pages()  # before anything is printed: it begins this command again
        rest = spell_out(rest, new=make_workdir)
        print(f'workdir: {next(w for w in rest if w.startswith("--workdir=")).partition("=")[2]}', flush=True)
    module = 'main' if command == 'train' else command
    if command in NETWORKS_OPEN:
        with status.during('starting JAX'):
            importlib.import_module('jaxcifar.runs.evaluation')
    # The command reads sys.argv as if it had been started by itself.
    sys.argv = [f'jaxcifar {command}', *rest]
    runpy.run_module(f'jaxcifar.{module}', run_name='__main__', alter_sys=True)


def start():
    """Run the command line as a program, whose faults end in one line."""
    run_command(main)


if __name__ == '__main__':
    start()
