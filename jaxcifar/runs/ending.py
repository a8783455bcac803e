"""Report a finished run's scores, where its files are, and which commands to run next."""

from pathlib import Path

from jaxcifar.config.members import network_of, titled
from jaxcifar.machine.command import command_line_for
from jaxcifar.machine.text import percent
from jaxcifar.runs.metrics import verdict

SHOWN = ('results.json', 'metrics.csv', 'per_class.csv')
MOST = 16  # members that have a line each


def where_to_go(workdir: Path, drawn: int) -> list[str]:
    """Return the last lines of a run that has `drawn` pictures: its files, and three commands to run next."""
    files = [name for name in SHOWN if (workdir / name).exists()]
    files += [f'{drawn} pictures in {workdir / "pictures"}'] if drawn else []
    return [
        f'files are in {workdir}: {", ".join(files)}',
        'next:',
        f'  {command_line_for("evaluate", workdir)}',
        f'  {command_line_for("predict", workdir, "IMAGE.png")}',
        f'  {command_line_for("report", workdir)}',
    ]


def chosen(results: dict) -> str:
    """Return the name of the weights that represent a run: 'best', or 'last' where none were chosen."""
    return 'best' if 'best' in results['mean'] else 'last'


def are_replicates(results: dict) -> bool:
    """Return whether members differ only in random draws; for others, a ± would pass for an error bar."""
    # A name is ID_NETWORK; members that differ only in their id are repetitions.
    kinds = {(network_of(m['name']), m.get('loss'), m.get('view')) for m in results['members']}
    varied = any('numbers' in m for m in results['members'])
    return len(kinds) == 1 and not varied and not results.get('own_images')


def lines(results: dict) -> list[str]:
    """Return the end of a run in a few lines for the terminal."""
    text = []
    for checkpoint in results['mean']:
        text.append(_mean_line(results, checkpoint))
        if 'fusion' in results:
            scores = {member['name']: member[checkpoint]['test'] for member in results['members']}
            text += fusion_lines(results['fusion'][checkpoint]['test'], scores)
        # For members of one kind the mean is enough; members that differ are shown one by one.
        if not are_replicates(results) or 'loss' in results['members'][0]:
            text += _member_lines(results, checkpoint)
        text += _best_of_sweep(results, checkpoint)
    return text


def _best_of_sweep(results: dict, checkpoint: str) -> list[str]:
    """Return a line on which member of a sweep over numbers scored best on the held-out images."""
    scores = [m.get(checkpoint, {}).get('validation_accuracy') for m in results['members']]
    if 'numbers' not in results['members'][0] or None in scores or results['selection'] == 'test':
        return []
    best = max(results['members'], key=lambda m: m[checkpoint]['validation_accuracy'])
    score = percent(best[checkpoint]['test']['accuracy'])
    return [f'  best on {results["selection"]}: {_titled(best)}, whose test accuracy is {score}']


def _titled(member: dict) -> str:
    """Return a member's name, and how it differs from the others."""
    kinds = [member[kind] for kind in ('loss', 'view') if kind in member]
    return titled(member['name'], kinds, member.get('numbers', {}))


def _mean_line(results: dict, checkpoint: str) -> str:
    """Return a line with the scores of the fused prediction or the average member, and of the ensemble."""
    mean, std = results['mean'][checkpoint], results['std'][checkpoint]
    several, same, fused = len(results['members']) > 1, are_replicates(results), 'fusion' in results
    how = 'last epoch'
    if checkpoint == 'best':
        how = f'chosen on {"the TEST images" if results["selection"] == "test" else results["selection"]}'
    how += ', mean of different members' if several and not same and not fused else ''
    # A ± is an error bar to its reader, so only repetitions get one.
    accuracy = percent(mean['accuracy'], std['accuracy'] if several and same else None)
    line = f'test accuracy {accuracy} ({how})'
    if fused:
        # This number is the purpose of a fusion run, so what it has to beat is printed beside it.
        mean, experts = results['fusion'][checkpoint]['test']['fused'], mean
        line = f'test accuracy: fused {percent(mean["accuracy"])}, '
        line += f'the experts on average {percent(experts["accuracy"])} ({how})'
    if 'mean_recall' in mean:
        line += f', mean recall {percent(mean["mean_recall"])}'
    line += f', NLL {mean["nll"]:.3f}, ECE {mean["ece"]:.3f}'
    return line + (f'; ensemble {percent(results["ensemble"][checkpoint]["accuracy"])}' if several else '')


def _member_lines(results: dict, checkpoint: str) -> list[str]:
    """Return a line of scores per member; of many, only the best and the worst on the test images."""
    members, rest = results['members'], []
    if len(members) > MOST:
        ranked = sorted(members, key=lambda m: m[checkpoint]['test']['accuracy'])
        members, rest = [ranked[-1], ranked[0]], [f'  … all {len(members)} members are in results.json']
    return [_member_line(results, member, checkpoint) for member in members] + rest


def _member_line(results: dict, member: dict, checkpoint: str) -> str:
    """Return a line with the scores of one member."""
    score = member[checkpoint]['test']
    # Without a long tail there are no groups, and a group may be empty.
    shown = [k for k in ('accuracy', 'mean_recall', 'many', 'medium', 'few') if k in score]
    numbers = ', '.join(f'{k.replace("_", " ")} {100 * score[k]:.2f}' for k in shown)
    line = f'  {_titled(member)}: {numbers} %'
    line += f', {member["train_images"]:,} training images' if results.get('own_images') else ''
    return line + (f', epoch {member[checkpoint]["epoch"]}' if 'epoch' in member[checkpoint] else '')


def fusion_lines(fusion: dict, members: dict[str, dict]) -> list[str]:
    """Return lines that compare a fused prediction with all that it has to beat, and the verdict."""
    best = fusion['best_expert']
    rows = {
        'fused': fusion['fused'],
        **members,
        'mean of logits': fusion['mean_of_logits'],
        'mean of probabilities': fusion['mean_of_probabilities'],
        f'best expert ({best["name"]})': best,
    }
    text = [
        f'  {name}: {percent(score["accuracy"])}, NLL {score["nll"]:.3f}, ECE {score["ece"]:.3f}'
        for name, score in rows.items()
    ]
    return [*text, f'  the learned rule {verdict(fusion)}']
