"""results.json: what a finished run is worth on the test images, and which weights were chosen how."""

import json
from pathlib import Path

import numpy as np

from jaxcifar.evaluate import evaluate_logits, mean_and_std
from jaxcifar.logs import write_json

FILE = 'results.json'


def read(workdir: Path, step: int) -> dict | None:
    """The results of a run that was over at `step`, None where it was not."""
    try:
        found = json.loads((workdir / FILE).read_text())
        return found if found['step'] == step else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def write(workdir: Path, results: dict):
    """The last thing that a run writes."""
    write_json(workdir / FILE, results)


def summarise(run, logits: dict[str, np.ndarray], labels: np.ndarray) -> dict:
    """From a run and the test images' logits [K,N,C] with its `last` and, if chosen, `best` weights."""
    chosen = run.selection
    members: list[dict] = [{'name': name} for name in run.names]
    found = {
        'step': run.step,
        'epoch': run.step // run.epoch_steps,
        'selection': run.config.data.validation,
        'members': members,
        'mean': {},
        'std': {},
        'ensemble': {},
    }
    for which, z in logits.items():
        scores, found['ensemble'][which] = evaluate_logits(z, labels)
        found['mean'][which], found['std'][which] = mean_and_std(scores)
        for k, score in enumerate(scores):
            members[k][which] = {'test': score}
            if which == 'best':
                members[k][which] |= {
                    'epoch': int(chosen.best_epoch[k]),
                    'validation_accuracy': float(chosen.best[k]),
                }
    return found


def lines(results: dict) -> list[str]:
    """The end of a run in a few lines for the terminal."""
    how = {'last': 'last epoch', 'best': f'chosen on {results["selection"]}'}
    how['best'] = {'test': 'chosen on the TEST images'}.get(results['selection'], how['best'])
    text = []
    for which in results['mean']:
        mean, std = results['mean'][which], results['std'][which]
        ensemble, several = results['ensemble'][which], len(results['members']) > 1
        line = f'test accuracy {100 * mean["accuracy"]:.2f}'
        if several:
            line += f' ± {100 * std["accuracy"]:.2f}'
        line += f' % ({how[which]}), NLL {mean["nll"]:.3f}, ECE {mean["ece"]:.3f}'
        if several:
            line += f'; ensemble {100 * ensemble["accuracy"]:.2f} %'
        text.append(line)
    return text
