"""Model cards: what exported weights are, were trained on and are worth, as JSON and as Markdown."""

from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np

import jaxcifar
from jaxcifar import config as configs
from jaxcifar.evaluate import mean_and_std
from jaxcifar.logs import read_json
from jaxcifar.members import flatten
from jaxcifar.portable import Portable

# The fields that say what was done, in the order of the card.
RECIPE = ('network', 'loss', 'split', 'coupling', 'view', 'epochs', 'batch_size', 'augment', 'optimizer.name',
          'optimizer.lr', 'optimizer.weight_decay', 'schedule.name', 'label_smoothing', 'ema', 'precision',
          'seed')  # fmt: skip


def make_card(workdir: Path, which: str, kind: str, members: list[Portable], files: list[dict]) -> dict:
    """The card of members of a run, exported to `files`: their name, format, bytes, check and speed."""
    config = configs.load(workdir / 'config.json')
    run = (read_json(workdir / 'run.json') or {}).get('sessions', [{}])[-1]
    fields = flatten(configs.to_dict(config))
    return {
        'made_by': f'jaxcifar {jaxcifar.__version__}',
        'made': datetime.now(UTC).date().isoformat(),
        'format': kind,
        'checkpoint': which,
        'data': read_json(workdir / 'dataset.json'),
        'training': {
            **{name: fields[name] for name in RECIPE},
            'commit': run.get('commit', ''),
            'devices': run.get('devices', []),
            'packages': run.get('packages', {}),
        },
        'accuracy': _accuracy(workdir, which, [member.about['name'] for member in members]),
        'members': [
            {'name': member.about['name'], 'parameters': _parameters(member), **file}
            for member, file in zip(members, files)
        ],
    }


def _parameters(member: Portable) -> int:
    return int(sum(np.size(leaf) for leaf in jax.tree.leaves(member.variables['params'])))


def _accuracy(workdir: Path, which: str, names: list[str]) -> dict | None:
    """What results.json says of these members' weights on the test images, None where it does not."""
    found = read_json(workdir / 'results.json')
    scores = [m[which]['test'] for m in (found or {}).get('members', []) if m['name'] in names and which in m]
    if len(scores) != len(names):
        return None
    mean, std = mean_and_std(scores)
    everyone = len(found['members']) == len(names)
    return {
        'split': 'test',
        'selected_on': found['selection'],
        'members': {name: score['accuracy'] for name, score in zip(names, scores)},
        'mean': mean['accuracy'],
        'std': std['accuracy'] if len(scores) > 1 else None,
        'ensemble': found['ensemble'][which]['accuracy'] if everyone and len(scores) > 1 else None,
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
        f'# {recipe["network"]} for {Path(data["name"]).name}',
        '',
        f'Names the class of {size}x{size} RGB images, one of {len(data["classes"])}: {classes}.',
        '',
        '| file | parameters | bytes | test accuracy | check | speed |',
        '|---|---|---|---|---|---|',
        *rows,
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
        f'{data["images"]["train"]:,} training and {data["images"]["test"]:,} test images '
        f'(sha256 of the data `{data["sha256"][:16]}`), channel mean {data["mean"]}, std {data["std"]}.',
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
    chosen = {'none': 'of the last epoch'}.get(found['selected_on'], f'chosen on {found["selected_on"]}')
    chosen = 'of the last epoch' if card['checkpoint'] == 'last' else chosen
    line = f'Test accuracy {100 * found["mean"]:.2f}'
    line += '' if found['std'] is None else f' ± {100 * found["std"]:.2f}'
    line += f' %, weights {chosen}'
    return line + ('.' if found['ensemble'] is None else f'; all together {100 * found["ensemble"]:.2f} %.')
