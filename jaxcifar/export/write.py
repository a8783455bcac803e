"""Export a run as a folder: one file per member, each read back and compared, and a card."""

import contextlib
import importlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxcifar.config import saved
from jaxcifar.export.card import make_card, to_markdown
from jaxcifar.export.classifier import Classifier, choose, load
from jaxcifar.formats import packed, packed_file, portable
from jaxcifar.formats.portable import CARD, HEAD, SUMS, Portable, write_safetensors, write_sums
from jaxcifar.machine.errors import UserError, lookup
from jaxcifar.machine.files import read_json, sha256, write_bytes, write_json, write_text
from jaxcifar.runs.released import released
from jaxcifar.runs.trained import TrainedRun, open_trained

IMAGES = 16  # of noise, on which each file is tested
TOLERANCE = {'float32': 1e-4, 'bfloat16': 0.1}  # absolute for logits up to 1, else relative to the largest
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


class Format(NamedTuple):
    """Say how a member is written and run again.

    write(path, member, **options); run(path) -> a function of uint8 images to logits [B,C];
    exact: whether the logits must equal the network's up to rounding; precision: the only one it has, if any.
    """

    ending: str
    write: Callable
    run: Callable
    options: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    exact: bool = True
    precision: str | None = None


def _run_loaded(path: Path) -> Callable:
    model = load(path)
    return lambda images: model.logits(images)[0]


def _write_safetensors(path: Path, member: Portable):
    write_safetensors(path, member.about, member.variables)


def _write_packed(path: Path, member: Portable, packing='trits', rest='float32', fold=False):
    packed_file.write(path, member.about, member.variables, packing, rest, fold)


def _require(*packages: str):
    """Raise `UserError` where an optional package is not installed, before anything is computed."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"this format needs {name}: pip install -c constraints.txt -e '.[export]', "
                'where jaxcifar was installed from'
            ) from None


def _write_onnx(path: Path, member: Portable, bits: int = 2):
    # onnx is optional: the other formats must work without it.
    from jaxcifar.formats.onnx_export import to_onnx

    # Ternary kernels stay codes with scales, which keeps the file small.
    tree = packed.pack_tree(member.variables, '2bit')
    ternary = packed.map_packed(lambda leaf: leaf.ternary(), tree)
    about = {'jaxcifar': json.dumps(member.about), 'classes': json.dumps(member.about['classes'])}
    model = to_onnx(member.forward(), ternary, member.about['image_size'], bits, about)
    write_bytes(path, model.SerializeToString())


def _run_onnx(path: Path) -> Callable:
    import onnxruntime

    # Other providers may round differently, and the check wants the network's own logits.
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, {'images': images})[0]


def _write_stablehlo(path: Path, member: Portable):
    forward, size = member.forward(), member.about['image_size']
    # B stays a symbol: one program takes batches of any size.
    shape = jax.export.symbolic_shape(f'B,{size},{size},3')
    function = jax.jit(lambda images: forward(member.variables, images))
    # Lowered for all platforms at once, whichever of them is here.
    with _without_paths():
        program = jax.export.export(function, platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, np.uint8))
    write_bytes(path, program.serialize())


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Leave the folders of this machine out of what is lowered: XLA notes the line of each operation."""
    option, everything = 'jax_hlo_source_file_canonicalization_regex', '.*/'
    before = getattr(jax.config, option)
    jax.config.update(option, everything)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _run_stablehlo(path: Path) -> Callable:
    # deserialize asks for a bytearray; read_bytes returns bytes.
    return jax.export.deserialize(bytearray(path.read_bytes())).call


FORMATS = {
    'release': Format('safetensors', _write_safetensors, _run_loaded),
    'safetensors': Format('safetensors', _write_safetensors, _run_loaded),
    'packed': Format('packed', _write_packed, _run_loaded, ('packing', 'rest', 'fold'), exact=False),
    'onnx': Format('onnx', _write_onnx, _run_onnx, ('bits',), ('onnx', 'onnxruntime'), precision='float32'),
    'stablehlo': Format('stablehlo', _write_stablehlo, _run_stablehlo, packages=('flatbuffers',)),
}


def export(
    workdir: Path,
    kind: str,
    output: Path | None = None,
    member: str = 'all',
    checkpoint: str | None = None,
    **options,
) -> Path:
    """Write a run's members to the folder `output` (WORKDIR/exports/FORMAT), and return it.

    Args:
      kind: a key of FORMATS.
      member: all, or one by its name or id.
      checkpoint: best, last, calibrated or a step; None is best, or last where nothing was chosen.
      options: of the format; None is its default.

    Raises:
      UserError: among others where a file does not give the network's logits.
    """
    # Refuse impossible requests before anything large is loaded.
    how = lookup('format', FORMATS, kind)
    options = {name: value for name, value in options.items() if value is not None}
    for name in options.keys() - set(how.options):
        raise UserError(f'--{name} is not for --format {kind}: leave it out')
    _require(*how.packages)
    trained = open_trained(workdir, checkpoint)
    if not isinstance(trained, TrainedRun):
        raise UserError(f'expected the workdir of a run to export, got {workdir}: it is an export already')
    members, head = choose(trained, member)
    trees = (packed.pack_tree(one.variables, '2bit') for one in members)
    if 'bits' in options and not any(map(packed.is_packed, trees)):
        raise UserError(f'--bits is for ternary kernels, and {workdir} has none: leave it out')
    head = head if kind == 'release' else None
    folder = (output or workdir / 'exports' / kind).resolve()
    _check_free(folder)
    # Everything is written beside the old export, which stays until the new one is whole.
    new = folder.with_name(f'.{folder.name}.new')
    shutil.rmtree(new, ignore_errors=True)
    files = [_write(new, how, one, options) for one in members]
    together = released(trained.config) if len(members) > 1 else members[0].config
    if head is not None:
        together.coupling = trained.config.coupling
        write_safetensors(new / HEAD, head.about, head.params)
    write_json(new / 'config.json', saved.to_dict(together))
    _write_card(new, workdir, make_card(workdir, trained.checkpoint, kind, members, files, head))
    write_sums(new)
    if head is not None:
        # Each member was tried when it was written; the head joins them, and is tried through the folder.
        images, allowed = _noise(members[0]), TOLERANCE[members[0].about['precision']]
        _difference(new, load(new).logits(images)[-1], Classifier(members, head).logits(images)[-1], allowed)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return folder


def _write_card(folder: Path, workdir: Path, card: dict):
    """Write a card for programs and for people, and what a release of the run holds besides weights."""
    if card['format'] == 'release':
        write_json(folder / 'dataset.json', card['data'])
        if (workdir / 'metrics.csv').exists():
            shutil.copy(workdir / 'metrics.csv', folder)
        if card['accuracy']:  # otherwise those are of other weights
            shutil.copy(workdir / 'results.json', folder)
    write_text(folder / portable.README, to_markdown(card))
    # This sum protects an edited README.md from the next export.
    write_json(folder / CARD, {**card, 'readme_sha256': sha256(folder / portable.README)})


def _check_free(folder: Path):
    """Raise `UserError` where the folder exists and holds anything but an export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f'expected a folder for the export, got the file {folder}: choose a new --output')
    # An export lists its own files, its card among them, so that only those are ever deleted.
    sums = folder / SUMS
    lines = sums.read_text(errors='replace').splitlines() if sums.is_file() else []
    listed = {line.split()[-1] for line in lines if line.strip()}
    ours = {SUMS, portable.README, *listed} if CARD in listed else set()
    if others := {path.name for path in folder.glob('*')} - ours:
        raise UserError(f'{folder} holds other files ({sorted(others)[0]}): choose a new --output')
    # Older exports do not record the sum of their README.md.
    written = (read_json(folder / CARD) or {}).get('readme_sha256')
    if written and (folder / portable.README).exists() and sha256(folder / portable.README) != written:
        raise UserError(f'{folder / portable.README} has been edited: move it away, or choose a new --output')


def _write(folder: Path, how: Format, member: Portable, options: dict) -> dict:
    """Write a member's file and try it; return what the card says of it."""
    precision = how.precision or member.about['precision']
    # Some formats have one precision, and the network must be compared in that one.
    member = member._replace(about={**member.about, 'precision': precision})
    path = folder / f'{member.about["name"]}.{how.ending}'
    how.write(path, member, **options)
    images = _noise(member)
    expected = Classifier([member]).logits(images)[0]
    run = how.run(path)
    logits = np.asarray(run(images))  # the first call compiles: the second is timed
    start = time.perf_counter()
    np.asarray(run(images))
    rate = IMAGES / (time.perf_counter() - start)
    difference = _difference(path, logits, expected, TOLERANCE[precision] if how.exact else math.inf)
    return {
        'file': path.name,
        'bytes': path.stat().st_size,
        'options': options,
        'check': f'logits of {IMAGES} images of noise differ by at most {difference:.2g}',
        'speed': f'{rate:,.0f} images/s in a batch of {IMAGES} on {jax.devices()[0].device_kind}',
    }


def _noise(member: Portable) -> np.ndarray:
    size = member.about['image_size']
    # Noise needs no data set, and reaches values that photographs rarely have.
    return np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)


def _difference(path: Path, logits: np.ndarray, expected: np.ndarray, allowed: float) -> float:
    """Return the largest difference of the logits; raise `UserError` where it is more than `allowed`."""
    difference = float(np.abs(logits - expected).max())
    # Written so that NaN fails too.
    if not difference <= allowed * max(1, np.abs(expected).max()) or math.isinf(difference):
        raise UserError(f'{path}: logits differ by {difference:.2g} from those of the network')
    return difference
