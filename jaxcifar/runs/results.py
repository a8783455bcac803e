"""results.json: what a finished run is worth on the test images, and which weights were chosen how."""

import csv
import io
import json
from pathlib import Path

import numpy as np

from jaxcifar.config.members import member_losses, member_views
from jaxcifar.data.expert_splits import rows_of
from jaxcifar.engine.couplings import has_head
from jaxcifar.machine.files import write_json, write_text
from jaxcifar.runs.evaluation import compare, evaluate_logits, member_metrics
from jaxcifar.runs.metrics import (
    class_recalls,
    log_probabilities,
    mean_and_std,
    mean_of_probabilities,
    verdict,
)

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


def summarise(run, logits: dict[str, dict[str, np.ndarray]]) -> dict:
    """From a run and, of its `last` and if chosen `best` weights, logits [K,N,C] of each of its tests.

    Mean, std and ensemble are of the images called test; those of others stand under their name.
    """
    chosen = run.selection
    sizes = [len(row) for row in rows_of(run.split.train)]
    own_images = run.split.train.ndim == 2
    sizes = sizes if own_images else sizes * len(run.names)
    members: list[dict] = [{'name': n, 'train_images': size} for n, size in zip(run.names, sizes)]
    found: dict = {
        'step': run.step,
        'epoch': run.step // run.epoch_steps,
        'selection': run.config.data.validation,
        'own_images': own_images,
        'members': members,
        'mean': {},
        'std': {},
        'ensemble': {},
    }
    for which, of_tests in logits.items():
        for name, z in of_tests.items():
            scores, ensemble = evaluate_logits(z[: len(members)], run.tests[name])
            if has_head(run.config):
                fused = found.setdefault('fusion', {}).setdefault(which, {})
                fused[name] = compare(run.names, z, run.tests[name])
            mean, std = mean_and_std(scores)
            top = found if name == 'test' else found.setdefault(name, {'mean': {}, 'std': {}, 'ensemble': {}})
            top['mean'][which], top['std'][which], top['ensemble'][which] = mean, std, ensemble
            for member, score in zip(members, scores):
                member.setdefault(which, {})[name] = score
    kinds = {'loss': member_losses(run.config), 'view': member_views(run.config)}
    for k, member in enumerate(members):
        member |= {kind: of[k] for kind, of in kinds.items() if len(set(of)) > 1}
        if 'best' in member:
            # Where there is a fused prediction, that has chosen for all, and has the accuracy.
            member['best']['epoch'] = int(chosen.best_epoch[k])
            by = found.get('fusion', member)
            by['best'] |= {'epoch': int(chosen.best_epoch[k]), 'validation_accuracy': float(chosen.best[k])}
    return found


def log(run, logits: dict[str, dict[str, np.ndarray]]):
    """The rows of metrics.csv that belong to `summarise`, and of a long tail per_class.csv."""
    for which, of_tests in logits.items():
        for name, z in of_tests.items():
            # Where the test images chose, their rows of the last epoch are there already.
            if which == 'best' or run.chooses_on != name:
                row = member_metrics(z, run.tests[name])
                run.logger.write(run.step // run.epoch_steps, run.step, name, row, which)
    if run.split.class_counts is not None:
        _write_classes(run, logits)


def _write_classes(run, logits: dict[str, dict[str, np.ndarray]]):
    """per_class.csv: the recall of each class by each output and by the members' ensemble."""
    columns = ('member', 'checkpoint', 'split', 'class', 'name', 'train_images', 'images', 'recall')
    file = io.StringIO()
    table = csv.writer(file, lineterminator='\n')
    table.writerow(columns)
    classes, counts = run.dataset.classes, run.split.class_counts
    for which, of_tests in logits.items():
        for split, z in of_tests.items():
            labels = run.tests[split].labels
            images = np.bincount(labels, minlength=len(classes))
            log_p = log_probabilities(z)
            mean = mean_of_probabilities(log_p[: len(run.names)])
            for member, p in zip([*run.outputs, 'ensemble'], [*log_p, mean], strict=True):
                recalls = class_recalls(p.argmax(1) == labels, labels, len(classes))
                for c, recall in enumerate(recalls):
                    row = (c, classes[c], counts[c], images[c], f'{recall:.6g}')
                    table.writerow((member, which, split, *row))
    write_text(run.workdir / 'per_class.csv', file.getvalue())


def alike(results: dict) -> bool:
    """Whether members differ by their draws alone: a ± over others would look like an error bar."""
    kinds = {(m['name'].partition('_')[2], m.get('loss'), m.get('view')) for m in results['members']}
    return len(kinds) == 1 and not results.get('own_images')


def lines(results: dict) -> list[str]:
    """The end of a run in a few lines for the terminal."""
    how = {'last': 'last epoch', 'best': f'chosen on {results["selection"]}'}
    how['best'] = {'test': 'chosen on the TEST images'}.get(results['selection'], how['best'])
    text = []
    own_images, same = results.get('own_images'), alike(results)
    for which in results['mean']:
        mean, std = results['mean'][which], results['std'][which]
        ensemble, several = results['ensemble'][which], len(results['members']) > 1
        of_members = " of the fusion's members" if 'fusion' in results else ''
        line = f'test accuracy{of_members} {100 * mean["accuracy"]:.2f}'
        if several and same and 'fusion' not in results:
            line += f' ± {100 * std["accuracy"]:.2f}'
        line += f' % ({how[which]}{", mean of different members" if several and not same else ""})'
        if 'mean_recall' in mean:
            line += f', mean recall {100 * mean["mean_recall"]:.2f} %'
        line += f', NLL {mean["nll"]:.3f}, ECE {mean["ece"]:.3f}'
        if several:
            line += f'; ensemble {100 * ensemble["accuracy"]:.2f} %'
        text.append(line)
        if 'fusion' in results:
            scores = {member['name']: member[which]['test'] for member in results['members']}
            text += fusion_lines(results['fusion'][which]['test'], scores)
        for member in results['members'] if not same or 'loss' in results['members'][0] else ():
            score_of = member[which]
            score = score_of['test']
            shown = [k for k in ('accuracy', 'mean_recall', 'many', 'medium', 'few') if k in score]
            numbers = ', '.join(f'{k.replace("_", " ")} {100 * score[k]:.2f}' for k in shown)
            line = f'  {" ".join(member[k] for k in ("name", "loss", "view") if k in member)}: {numbers} %'
            line += f', {member["train_images"]:,} training images' if own_images else ''
            text.append(line + (f', epoch {score_of["epoch"]}' if 'epoch' in score_of else ''))
    return text


def fusion_lines(found: dict, members: dict[str, dict]) -> list[str]:
    """A fused prediction beside its members and all else that it has to beat, and whether it does."""
    best = found['best_expert']
    rows = {
        'fused': found['fused'],
        **members,
        'mean of logits': found['mean_of_logits'],
        'mean of probabilities': found['mean_of_probabilities'],
        f'best expert ({best["name"]})': best,
    }
    text = [
        f'  {name}: {100 * score["accuracy"]:.2f} %, NLL {score["nll"]:.3f}, ECE {score["ece"]:.3f}'
        for name, score in rows.items()
    ]
    return [*text, f'  the learned rule {verdict(found)}']
