"""Say what a finished run is worth, where its files are, and which commands come next."""

from pathlib import Path

from jaxcifar.config.members import network_of, titled
from jaxcifar.machine.command import command_line_for
from jaxcifar.machine.text import percent
from jaxcifar.runs.metrics import verdict

SHOWN = ('results.json', 'metrics.csv', 'per_class.csv')
MOST = 16  # members that have a line each


def where_to_go(workdir: Path, drawn: int) -> list[str]:
    """Return lines for the end of a run that has drawn so many pictures: its files, and three commands."""
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
    """Return the weights that stand for a run: 'best', or 'last' where none were chosen."""
    return 'best' if 'best' in results['mean'] else 'last'


def are_replicates(results: dict) -> bool:
    """Return whether members differ by their draws alone: a ± over others would look like an error bar."""
    # A name is ID_NETWORK; members that differ by their id alone are repetitions.
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
        # The mean of members of one kind says it all; others are shown one by one.
        if not are_replicates(results) or 'loss' in results['members'][0]:
            text += _member_lines(results, checkpoint)
        text += _best_of_sweep(results, checkpoint)
    return text


def _best_of_sweep(results: dict, checkpoint: str) -> list[str]:
    """Return which of the members with numbers of their own the held-out images found best, as a line."""
    scores = [m.get(checkpoint, {}).get('validation_accuracy') for m in results['members']]
    if 'numbers' not in results['members'][0] or None in scores or results['selection'] == 'test':
        return []
    best = max(results['members'], key=lambda m: m[checkpoint]['validation_accuracy'])
    score = percent(best[checkpoint]['test']['accuracy'])
    return [f'  best on {results["selection"]}: {_titled(best)}, whose test accuracy is {score}']


def _titled(member: dict) -> str:
    """Return a member's name, and in what it differs from the others."""
    kinds = [member[kind] for kind in ('loss', 'view') if kind in member]
    return titled(member['name'], kinds, member.get('numbers', {}))


def _mean_line(results: dict, checkpoint: str) -> str:
    """Return what the fused prediction or the members on average are worth, and the mean of probabilities."""
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
        # A fusion is run for this number. What it has to beat stands beside it.
        mean, experts = results['fusion'][checkpoint]['test']['fused'], mean
        line = f'test accuracy: fused {percent(mean["accuracy"])}, '
        line += f'the experts on average {percent(experts["accuracy"])} ({how})'
    if 'mean_recall' in mean:
        line += f', mean recall {percent(mean["mean_recall"])}'
    line += f', NLL {mean["nll"]:.3f}, ECE {mean["ece"]:.3f}'
    return line + (f'; ensemble {percent(results["ensemble"][checkpoint]["accuracy"])}' if several else '')


def _member_lines(results: dict, checkpoint: str) -> list[str]:
    """Return what each member is worth; of many only the best and the worst on the test images."""
    members, rest = results['members'], []
    if len(members) > MOST:
        ranked = sorted(members, key=lambda m: m[checkpoint]['test']['accuracy'])
        members, rest = [ranked[-1], ranked[0]], [f'  … all {len(members)} members are in results.json']
    return [_member_line(results, member, checkpoint) for member in members] + rest


def _member_line(results: dict, member: dict, checkpoint: str) -> str:
    """Return what a member that differs from the others is worth."""
    score = member[checkpoint]['test']
    # Without a long tail there are no groups, and a group may be empty.
    shown = [k for k in ('accuracy', 'mean_recall', 'many', 'medium', 'few') if k in score]
    numbers = ', '.join(f'{k.replace("_", " ")} {100 * score[k]:.2f}' for k in shown)
    line = f'  {_titled(member)}: {numbers} %'
    line += f', {member["train_images"]:,} training images' if results.get('own_images') else ''
    return line + (f', epoch {member[checkpoint]["epoch"]}' if 'epoch' in member[checkpoint] else '')


def fusion_lines(fusion: dict, members: dict[str, dict]) -> list[str]:
    """Return a fused prediction beside its members and all else that it has to beat, and whether it does."""
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
