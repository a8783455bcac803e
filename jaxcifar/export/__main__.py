"""Export trained networks for others: python -m jaxcifar.export RUN --format FORMAT

    release      weights, config, metrics and sums: for jaxcifar.load(FOLDER) and --config.init_from=FOLDER
    safetensors  the weights by their names
    packed       ternary networks in 1.6 or 2 bits a weight: for jaxcifar.load(FILE)
    onnx         graphs for onnxruntime and others; ternary kernels at 2, 4 or 8 bits
    stablehlo    programs for jax.export.deserialize, weights inside, for CPU and accelerators

Writes a folder with one file per member, and a model card. Every file is read back, run on noise, and
compared with the original network.
"""

from jaxcifar.export import hub
from jaxcifar.export.write import FORMATS, export
from jaxcifar.machine import status
from jaxcifar.machine.command import a_path, command_parser, run_command


def main():
    """Run the command line."""
    parser = command_parser('jaxcifar.export', __doc__, 'folder of a run')
    parser.add_argument('--format', required=True, help=' | '.join(FORMATS))
    parser.add_argument('--member', default='all', help='all, or one by its name or id (all)')
    parser.add_argument('--checkpoint', help='best | last | STEP | calibrated (best, where there is one)')
    parser.add_argument('--output', type=a_path, help='a new folder (WORKDIR/exports/FORMAT)')
    parser.add_argument('--packing', help='packed: trits | 2bit (trits)')
    parser.add_argument('--rest', help='packed: float32 | float16, all but the ternary kernels (float32)')
    fold = 'packed: norms as one product and one sum'
    parser.add_argument('--fold', action='store_const', const=True, help=fold)
    parser.add_argument('--bits', type=int, choices=(2, 4, 8), help='onnx: of a ternary weight (2)')
    args = parser.parse_args()
    options = {name: getattr(args, name) for name in ('packing', 'rest', 'fold', 'bits')}
    with status.during(f'exporting as {args.format}'):
        folder = export(args.workdir, args.format, args.output, args.member, args.checkpoint, **options)
    print(hub.without_head((folder / 'README.md').read_text()))
    print(folder)


if __name__ == '__main__':
    run_command(main)
