"""Train a run, or continue it: python -m jaxcifar.main --config CONFIG[:ARGUMENT] --workdir FOLDER

In short: jaxcifar train CONFIG[:ARGUMENT] --FIELD VALUE, as in jaxcifar train quickstart --lr .05

CONFIG is a file, or the name of a shipped config: quickstart is configs/quickstart.py. Repeating the
command resumes the run; a finished run says so. Change a field with --config.FIELD=VALUE, for example
--config.optimizer.lr=.05 or, with one number per member, --config.optimizer.lr=.1,.05
--help lists all fields, --help FIELD prints one.

--verbose also prints XLA's options, and the compile time and FLOPs of a step.

To use several hosts, run the command on each and add --coordinator HOST:PORT (of the first host)
--processes N --process I (from 0). Slurm's srun needs no such flags. All hosts must share the workdir.
"""

import sys

from jaxcifar.config import recipe, unused
from jaxcifar.config.command_line import parse, usage, which_host
from jaxcifar.config.fields import check_values
from jaxcifar.machine import memory, status
from jaxcifar.machine.command import run_command

VERBOSE = '--verbose'


def main():
    """Run the command line."""
    if asked := {'--help', '-h', '--helpfull'} & set(sys.argv[1:]):
        print(usage(str(__doc__), sys.argv[1 + sys.argv.index(asked.pop()) :]))
        return
    status.verbose = VERBOSE in sys.argv
    place, argv = which_host([word for word in sys.argv if word != VERBOSE])
    config, workdir = parse(argv)
    check_values(config)
    # JAX takes a second or two: not before the command line is right.
    with status.during('starting JAX'):
        from jaxcifar.loop import train
        from jaxcifar.machine import hosts

    with hosts.joined(**vars(place)):
        # The first question about devices starts them: seconds for a GPU.
        with status.during('starting the devices'):
            first = hosts.is_first()
        if first:
            ignored = unused.without_effect(config, unused.set_by(argv, config))
            for line in [*recipe.of_command_line(argv, config), *ignored]:
                print(line, flush=True)
        train(config, workdir)


if __name__ == '__main__':
    # First of all: the process starts again, and would throw away what it had imported.
    memory.restart_in_huge_pages()
    run_command(main)
