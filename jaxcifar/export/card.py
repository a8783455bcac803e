"""Make model cards in JSON and Markdown: what exported weights are, their training data, their accuracy."""

from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import jaxcifar
from jaxcifar.config import saved
from jaxcifar.config.members import alone, member_names
from jaxcifar.config.values import flatten
from jaxcifar.export import hub
from jaxcifar.formats.portable import HEAD, FusedHead, Portable
from jaxcifar.machine.files import read_json, reading
from jaxcifar.machine.text import escape_markdown, percent
from jaxcifar.runs import session_log
from jaxcifar.runs.ending import are_replicates, chosen
from jaxcifar.runs.metrics import mean_and_std
from jaxcifar.runs.weights import CALIBRATED

# The fields that say what was done, in the order of the card.
RECIPE = ('network', 'loss', 'split', 'coupling', 'view', 'epochs', 'batch_size', 'augment', 'optimizer.name',
          'optimizer.lr', 'optimizer.weight_decay', 'schedule.name', 'label_smoothing', 'ema', 'precision',
          'seed')  # fmt: skip


def make_card(
    workdir: Path,
    checkpoint: str,
    kind: str,
    members: list[Portable],
    files: list[dict],
    head: FusedHead | None = None,
) -> dict:
    """Return the card for a run's members and the `files` that hold them, as described by `write`."""
    # The sources: config.json, run.json and results.json of the workdir.
    config, results = saved.load(workdir / 'config.json'), _results(workdir)
    names = [member.about['name'] for member in members]
    # A single member of several is described as if it had been trained alone.
    several = member_names(config)
    own = alone(config, several.index(names[0])) if len(names) < len(several) else config
    fields = flatten(saved.to_dict(own))
    with reading(workdir / 'results.json', 'delete it, and continue the run to have it made again'):
        # Older results do not say how many images a member saw.
        counts = {m['name']: m.get('train_images') for m in results['members']} if results else {}
        seen = {name: None if count is None else int(count) for name, count in counts.items()}
        accuracy = _accuracy(results, checkpoint, names, config, head is not None) if results else None
    return {
        'made_by': f'jaxcifar {jaxcifar.__version__}',
        'made': datetime.now(UTC).date().isoformat(),
        'format': kind,
        'checkpoint': checkpoint,
        'data': _data(workdir),
        'training': {
            **{name: fields[name] for name in RECIPE},
            **session_log.trained_with(workdir),
        },
        'accuracy': accuracy,
        'members': [
            {
                'name': member.about['name'],
                'parameters': _parameters(member.variables['params']),
                'train_images': seen.get(member.about['name']),
                # Only calibrated weights have a temperature; 1 would look like the result of a calibration.
                **({'temperature': member.about['temperature']} if 'temperature' in member.about else {}),
                **file,
            }
            for member, file in zip(members, files)
        ],
        'fused': head and {'file': HEAD, 'parameters': _parameters(head.params), **head.about},
    }


def _data(workdir: Path) -> dict:
    """Return dataset.json without the folder in which the images were, which is private."""
    path = workdir / 'dataset.json'
    data = read_json(path)
    with reading(path):
        # The folder may carry a name or an account of whoever trained.
        kind, _, file = data['name'].partition(':')
        data['name'] = f'{kind}:{Path(file).name}' if file else kind
        data['images']['train'], data['images']['test'], data['sha256'][:16]  # what the card needs
    return data


def _parameters(tree) -> int:
    return int(sum(np.size(leaf) for leaf in jax.tree.leaves(tree)))


def _results(workdir: Path) -> dict | None:
    """Return results.json; None where there is none or the run has trained further since."""
    # If a finished run was continued, its earlier results are about other weights.
    steps = [int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdecimal()]
    needed = {'members': list, 'mean': dict, 'ensemble': dict, 'selection': str}
    results = read_json(workdir / 'results.json', **needed)
    # Of a finished run, the checkpoints may have been deleted to save space.
    return results if results and (not steps or results.get('step') == max(steps)) else None


def _accuracy(results: dict, checkpoint: str, names: list[str], config: ConfigDict, fused: bool):
    """Return the test scores of these members' weights from results.json; None if it has none for them.

    Mean and deviation are over the exported members.
    """
    calibrated = checkpoint == CALIBRATED  # the chosen weights: a temperature changes no prediction
    choice = chosen(results) if calibrated else checkpoint
    # A step that is neither the best nor the last was never tested.
    scores = {m['name']: m[choice]['test'] for m in results['members'] if choice in m}
    if not scores.keys() >= set(names):
        return None
    mean, std = mean_and_std([scores[name] for name in names])
    # Members that differ by design have a spread, but no error bar.
    error_bar = len(names) > 1 and are_replicates(results) and 'fusion' not in results
    # The ensemble was measured over all members, so there is none for a subset.
    together = len(results['members']) == len(names) > 1 and not calibrated
    return {
        'split': 'test',
        'selected_on': 'none' if choice == 'last' else results['selection'],
        'flip': config.eval.flip,
        'shift': config.eval.shift,
        'members': {name: scores[name]['accuracy'] for name in names},
        'mean': mean['accuracy'],
        'std': std['accuracy'] if error_bar else None,
        'ensemble': results['ensemble'][choice]['accuracy'] if together else None,
        'fused': results['fusion'][choice]['test']['fused']['accuracy'] if fused else None,
    }


def to_markdown(card: dict) -> str:
    """Return the card for people: the folder's README.md."""
    data, recipe = card['data'], card['training']
    size = data['image_size']
    # Twenty names show what the classes are; ImageNet has a thousand.
    classes = escape_markdown(', '.join(data['classes'][:20])) + (', …' if len(data['classes']) > 20 else '')
    rows = [
        f'| `{m["file"]}` | {m["parameters"]:,} | {m["bytes"]:,} | {_percent(card, m["name"])} '
        f'| {m["check"]} | {m["speed"]} |'
        for m in card['members']
    ]
    # One literal, so that this code looks like the card.
    return '\n'.join([
        hub.head(card),
        f'# {recipe["network"]} for {escape_markdown(data["name"].rpartition(":")[2])}',
        '',
        f'Classifies {size}x{size} RGB images into {len(data["classes"])} classes: {classes}.',
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
        *(f'- {name}: {escape_markdown(str(recipe[name]))}' for name in RECIPE),
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
    return percent(card['accuracy']['members'][name]) if card['accuracy'] else 'not measured'


def _summary(card: dict) -> str:
    """Return a sentence on the weights' accuracy, on which images, and how the weights were chosen."""
    scores = card['accuracy']
    if scores is None:
        return f'Weights: {card["checkpoint"]}. No accuracy was measured for these.'
    # Which images chose the weights decides how far the number can be trusted.
    kinds = {'none': 'of the last epoch', 'test': 'chosen on these TEST images'}
    chosen = kinds.get(scores['selected_on'], f'chosen on {scores["selected_on"]}')
    line = f'Test accuracy {percent(scores["mean"], scores["std"])}, weights {chosen}'
    # What was predicted together, and how images were shown to the networks.
    if scores['fused'] is not None:
        line += f'; fused {percent(scores["fused"])}'
    if scores['ensemble'] is not None:
        line += f'; the mean of their probabilities {percent(scores["ensemble"])}'
    if scores['flip'] or scores['shift']:
        mirrored = ' and of its mirror image' if scores['flip'] else ''
        moved = f', also moved by {scores["shift"]} px,' if scores['shift'] else ''
        line += f'; all with the logits of an image{mirrored}{moved} averaged'
    # A file may hold fewer digits than the weights that were tested.
    rounded = any(m['options'].get('fold') or m['options'].get('rest') == 'float16' for m in card['members'])
    line += '; measured before the numbers in these files were rounded (see check)' if rounded else ''
    return f'{line}.'


def _fused_row(card: dict) -> list[str]:
    fused, scores = card['fused'], card['accuracy']
    if not fused:
        return []
    accuracy = percent(scores['fused']) if scores else 'not measured'
    return [f'| `{fused["file"]}` (all of them) | {fused["parameters"]:,} | | {accuracy} | | |']


def _seen(card: dict) -> str:
    """Return how many of the training images a member has seen, '' where that is not known."""
    # Members of an expert split have seen different numbers of images.
    counts = sorted({m['train_images'] for m in card['members'] if m['train_images']})
    return f', of which a member saw {" or ".join(f"{n:,}" for n in counts)}' if counts else ''
