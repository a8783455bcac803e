"""Model cards: what exported weights are, were trained on and are worth, as JSON and as Markdown."""

from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import jaxcifar
from jaxcifar.config import saved
from jaxcifar.config.values import flatten
from jaxcifar.formats.portable import HEAD, FusedHead, Portable
from jaxcifar.machine.files import read_json
from jaxcifar.runs import results
from jaxcifar.runs.metrics import mean_and_std

# The fields that say what was done, in the order of the card.
RECIPE = ('network', 'loss', 'split', 'coupling', 'view', 'epochs', 'batch_size', 'augment', 'optimizer.name',
          'optimizer.lr', 'optimizer.weight_decay', 'schedule.name', 'label_smoothing', 'ema', 'precision',
          'seed')  # fmt: skip


def make_card(
    workdir: Path,
    which: str,
    kind: str,
    members: list[Portable],
    files: list[dict],
    head: FusedHead | None = None,
) -> dict:
    """The card of members of a run, exported to `files`: their name, format, bytes, check and speed."""
    config = saved.load(workdir / 'config.json')
    run = (read_json(workdir / 'run.json') or {}).get('sessions', [{}])[-1]
    fields = flatten(saved.to_dict(config))
    found = _results(workdir)
    images = {m['name']: m.get('train_images') for m in (found or {}).get('members', [])}
    data = read_json(workdir / 'dataset.json')
    kind_of_data, _, path = data['name'].partition(':')
    data['name'] = f'{kind_of_data}:{Path(path).name}' if path else kind_of_data  # where it was is private
    return {
        'made_by': f'jaxcifar {jaxcifar.__version__}',
        'made': datetime.now(UTC).date().isoformat(),
        'format': kind,
        'checkpoint': which,
        'data': data,
        'training': {
            **{name: fields[name] for name in RECIPE},
            'commit': run.get('commit', ''),
            'devices': run.get('devices', []),
            'packages': run.get('packages', {}),
        },
        'accuracy': found
        and _accuracy(found, which, [member.about['name'] for member in members], config, head is not None),
        'members': [
            {
                'name': member.about['name'],
                'parameters': _parameters(member.variables['params']),
                'train_images': images.get(member.about['name']),
                **({'temperature': member.about['temperature']} if 'temperature' in member.about else {}),
                **file,
            }
            for member, file in zip(members, files)
        ],
        'fused': head and {'file': HEAD, 'parameters': _parameters(head.params), **head.about},
    }


def _parameters(tree) -> int:
    return int(sum(np.size(leaf) for leaf in jax.tree.leaves(tree)))


def _results(workdir: Path) -> dict | None:
    """results.json, None where there is none or the run has gone on since."""
    steps = [int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit()]
    return results.read(workdir, max(steps, default=0))


def _accuracy(found: dict, which: str, names: list[str], config: ConfigDict, fused: bool) -> dict | None:
    """What results.json says of these members' weights on the test images, None where it does not."""
    calibrated = which == 'calibrated'  # the chosen weights, whose predictions a temperature leaves alone
    which = ('best' if 'best' in found['mean'] else 'last') if calibrated else which
    scores = [m[which]['test'] for m in found['members'] if m['name'] in names and which in m]
    if len(scores) != len(names):
        return None
    mean, std = mean_and_std(scores)
    error_bar = len(scores) > 1 and results.alike(found) and 'fusion' not in found
    together = len(found['members']) == len(names) > 1 and not calibrated
    return {
        'split': 'test',
        'selected_on': found['selection'],
        'flip': config.eval.flip,
        'shift': config.eval.shift,
        'members': {name: score['accuracy'] for name, score in zip(names, scores)},
        'mean': mean['accuracy'],
        'std': std['accuracy'] if error_bar else None,
        'ensemble': found['ensemble'][which]['accuracy'] if together else None,
        'fused': found['fusion'][which]['test']['fused']['accuracy'] if fused else None,
    }


def to_markdown(card: dict) -> str:
    """The card for people, README.md of the folder."""
    data, recipe = card['data'], card['training']
    size = data['image_size']
    classes = ', '.join(data['classes'][:20]) + (', …' if len(data['classes']) > 20 else '')
    rows = [
        f'| `{m["file"]}` | {m["parameters"]:,} | {m["bytes"]:,} | {_percent(card, m["name"])} '
        f'| {m["check"]} | {m["speed"]} |'
        for m in card['members']
    ]
    return '\n'.join([
        f'# {recipe["network"]} for {data["name"].rpartition(":")[2]}',
        '',
        f'Names the class of {size}x{size} RGB images, one of {len(data["classes"])}: {classes}.',
        '',
        '| file | parameters | bytes | test accuracy | check | speed |',
        '|---|---|---|---|---|---|',
        *rows,
        *_fused_row(card),
        '',
        _summary(card),
        '',
        '## Use',
        '',
        '```python',
        *USE[card['format']].format(file=card['members'][0]['file']).splitlines(),
        '```',
        '',
        '## Training',
        '',
        f'{data["images"]["train"]:,} training images{_seen(card)}, {data["images"]["test"]:,} test images '
        f'(sha256 of the data `{data["sha256"][:16]}`), '
        f'channel mean {data["mean"]}, std {data["std"]}.',
        '',
        *(f'- {name}: {recipe[name]}' for name in RECIPE),
        '',
        f'Made by {card["made_by"]} on {card["made"]}; all fields in `config.json`, sums in `SHA256SUMS`.',
        '',
    ])  # fmt: skip


USE = {
    'release': """import jaxcifar

model = jaxcifar.load('.')  # this folder
probabilities = model(images)  # uint8 [B,H,W,3] -> [B,C]; model.logits(images): [K,B,C]; model.classes""",
    'packed': """import jaxcifar

model = jaxcifar.load('{file}')  # stays packed in memory
probabilities = model(images)  # uint8 [B,H,W,3] -> [B,C]; model.logits(images): [1,B,C]; model.classes""",
    'onnx': """import onnxruntime

session = onnxruntime.InferenceSession('{file}')
(logits,) = session.run(None, {{'images': images}})  # uint8 [B,H,W,3] -> float32 [B,C]""",
    'stablehlo': """import jax

model = jax.export.deserialize(open('{file}', 'rb').read())
logits = model.call(images)  # uint8 [B,H,W,3] -> float32 [B,C]""",
    'safetensors': """from safetensors import safe_open

with safe_open('{file}', 'np') as file:  # kernels [h,w,in,out]; file.metadata() says of what
    tensors = {{name: file.get_tensor(name) for name in file.keys()}}""",
}


def _percent(card: dict, name: str) -> str:
    return f'{100 * card["accuracy"]["members"][name]:.2f} %' if card['accuracy'] else 'not measured'


def _summary(card: dict) -> str:
    found = card['accuracy']
    if found is None:
        return f'Weights: {card["checkpoint"]}. No accuracy was measured of these.'
    kinds = {'none': 'of the last epoch', 'test': 'chosen on these TEST images'}
    chosen = kinds.get(found['selected_on'], f'chosen on {found["selected_on"]}')
    chosen = kinds['none'] if card['checkpoint'] == 'last' else chosen
    line = f'Test accuracy {100 * found["mean"]:.2f}'
    line += '' if found['std'] is None else f' ± {100 * found["std"]:.2f}'
    line += f' %, weights {chosen}'
    if found['fused'] is not None:
        line += f'; fused {100 * found["fused"]:.2f} %'
    if found['ensemble'] is not None:
        line += f'; the mean of their probabilities {100 * found["ensemble"]:.2f} %'
    if found['flip'] or found['shift']:
        mirrored = ' and of its mirror image' if found['flip'] else ''
        moved = f', also moved by {found["shift"]} px,' if found['shift'] else ''
        line += f'; all with the logits of an image{mirrored}{moved} averaged'
    rounded = any(m['options'].get('fold') or m['options'].get('rest') == 'float16' for m in card['members'])
    line += '; measured before the numbers in these files were rounded (see check)' if rounded else ''
    return f'{line}.'


def _fused_row(card: dict) -> list[str]:
    fused, found = card['fused'], card['accuracy']
    if not fused:
        return []
    accuracy = f'{100 * found["fused"]:.2f} %' if found else 'not measured'
    return [f'| `{fused["file"]}` (all of them) | {fused["parameters"]:,} | | {accuracy} | | |']


def _seen(card: dict) -> str:
    """How many of the training images a member has seen, '' where that is not known."""
    counts = sorted({m['train_images'] for m in card['members'] if m['train_images']})
    return f', of which a member saw {" or ".join(f"{n:,}" for n in counts)}' if counts else ''
