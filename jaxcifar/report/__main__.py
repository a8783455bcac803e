"""Write one page about any number of runs: `python -m jaxcifar.report DIR... [--out FOLDER]`.

Reads only the files that a run leaves in its folder, so it needs no accelerator and starts fast.
"""

from collections.abc import Sequence

from jaxcifar.machine.command import a_path, command_parser, run_command
from jaxcifar.report.tables import write


def main(argv: Sequence[str] | None = None):
    """Run the command line."""
    parser = command_parser('jaxcifar.report', __doc__)
    parser.add_argument(
        'dirs', nargs='+', type=a_path, metavar='DIR', help='folder of a run, finished or not'
    )
    parser.add_argument('--out', type=a_path, help='where the report goes (default: the first run)')
    args = parser.parse_args(argv)
    paths = write(args.dirs, args.out)
    print(paths[1].read_text(encoding='utf-8'), *paths, sep='\n')


if __name__ == '__main__':
    run_command(main)
