"""What a workdir says of its run besides metrics: config, data, sessions; and taking over another's."""

import platform
import shlex
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.members import flatten, member_names
from jaxcifar.data.datasets import Dataset
from jaxcifar.data.splits import Split
from jaxcifar.engine.couplings import has_head
from jaxcifar.engine.optim import HEAD_PARTS
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, write_json, write_text
from jaxcifar.machine.profile import share_of_peak
from jaxcifar.machine.versions import PACKAGES, git_commit, installed
from jaxcifar.runs.checkpoint import Checkpoints
from jaxcifar.runs.selection import Selection
from jaxcifar.runs.weights import BestWeights

# What gives a run's steps and scores their meaning.
SAME_CLOCK = ('dataset', 'network', 'members', 'member_ids', 'split', 'batch_size', 'optimizer.accumulate',
              'data.drop_last', 'data.validation', 'data.validation_size', 'data.split_seed',
              'long_tail.imbalance', 'long_tail.seed', 'experts.count', 'experts.seed',
              'experts.holdout', 'experts.validation', 'experts.shared', 'experts.unique',
              'files.train', 'files.validation')  # fmt: skip

# What makes of the same weights another network, whose scores have nothing to do with those before.
SAME_VIEW = ('view', 'ternary.rule', 'ternary.per', 'ternary.scale', 'ternary.layers', 'fusion.rule',
             'fusion.residual', 'fusion.heads')  # fmt: skip


def check_config(workdir: Path, config: ConfigDict):
    """Raise `UserError` where the workdir holds a run that this config cannot continue."""
    path = workdir / 'config.json'
    if path.exists() and _has_checkpoint(workdir):
        saved.refuse_changes(saved.load(path), config, workdir)


def check_dataset(workdir: Path, dataset: Dataset, split: Split):
    """Raise `UserError` where the workdir's run saw other images, or parted them otherwise."""
    before = read_json(workdir / 'dataset.json') if _has_checkpoint(workdir) else None
    if before is not None and before['sha256'] != dataset.fingerprint():
        raise UserError(
            f'the images of {dataset.name} are not those that {workdir} was trained on: '
            f'put the files back, or choose a new --workdir'
        )
    if before is not None and before.get('split', split.fingerprint()) != split.fingerprint():
        raise UserError(
            f'the split of {dataset.name} is not that of {workdir}: put back the index files in the data '
            'folder, or the version of scikit-learn, or choose a new --workdir'
        )


def _has_checkpoint(workdir: Path) -> bool:
    """Whether there is anything to lose: a run that failed before may be tried with other settings."""
    checkpoints = (workdir / 'checkpoints').glob('[0-9]*')
    return any(checkpoints) or (workdir / 'results.json').exists() or (workdir / 'best').exists()


def warn_of_losses(workdir: Path, step: int, epoch_steps: int):
    """Say on stderr that checkpoints are gone which this run once had written."""
    stamps = [int(path.stem) for path in (workdir / 'best').glob('*/[0-9]*.npz')]
    # The best weights of an epoch come before its checkpoint: one epoch ahead is nothing unusual.
    last = max(stamps, default=0) - epoch_steps
    results = read_json(workdir / 'results.json')
    if max(last, results['step'] if results else 0) > step:
        where = f'step {step}' if step else 'the beginning'
        print(f'warning: newer checkpoints of {workdir} are missing; going on from {where}', file=sys.stderr)


def check_clock(meta: dict, epoch_steps: int):
    """Raise `UserError` where the number of devices has changed the steps of an epoch."""
    if meta['step'] and meta['epoch_steps'] != epoch_steps:
        raise UserError(
            f'an epoch had {meta["epoch_steps"]} steps and has {epoch_steps} now: a last batch that does not '
            'split evenly is trimmed, so continue on as many devices as before'
        )


def record(workdir: Path, config: ConfigDict, dataset: Dataset, params: tuple, split: Split | None = None):
    """Write config.json, dataset.json and networks.txt, and append to run.json what runs where."""
    write_json(workdir / 'config.json', saved.to_dict(config))
    description = {
        'name': dataset.name,
        'sha256': dataset.fingerprint(),
        'images': {'train': len(dataset.y_train), 'test': len(dataset.y_test)},
        'image_size': dataset.image_size,
        'mean': list(dataset.mean),
        'std': list(dataset.std),
        'classes': list(dataset.classes),
    }
    if split is not None:
        description['split'] = split.fingerprint()
    write_json(workdir / 'dataset.json', description)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
    tables = [parameter_overview.get_parameter_overview(s, include_stats=False) for s in shapes]
    write_text(workdir / 'networks.txt', '\n\n'.join(tables) + '\n')
    run = read_json(workdir / 'run.json', {'sessions': []})
    session = {
        'command': shlex.join(sys.orig_argv),
        'commit': git_commit(),
        'started': datetime.now(UTC).isoformat(timespec='seconds'),
        'host': platform.node(),
        'devices': [f'{d.platform}:{d.id} {d.device_kind}' for d in jax.devices()],
        'python': platform.python_version(),
        'packages': {name: installed(name) for name in PACKAGES},
    }
    run['sessions'].append(session)
    write_json(workdir / 'run.json', run)


def record_speed(workdir: Path, program, clock) -> str:
    """Add to the session what its steps cost, and return it as a line."""
    flops = program.flops * clock.steps_per_second()
    share = share_of_peak(flops)
    run = read_json(workdir / 'run.json')
    run['sessions'][-1]['speed'] = {
        'compile_seconds': round(program.seconds, 2),
        'flops_per_step_and_device': program.flops,
        'images_per_second': round(clock.mean_rate(), 1),
        'share_of_bfloat16_peak': share,
    }
    write_json(workdir / 'run.json', run)
    of_peak = '' if share is None else f', {share:.1%} of the bfloat16 peak'
    return (
        f'{clock.mean_rate():,.0f} images/s, {flops / 1e9:,.0f} GFLOP/s a device{of_peak}; '
        f'compiled in {program.seconds:.1f} s'
    )


def take_over(config: ConfigDict, like, workdir: Path):
    """(state, meta) of config.resume_from, WORKDIR or WORKDIR@STEP, with its metrics and best weights.

    The new run goes on from that step as if it had been its own, under its own config, which may have
    another recipe but not other data, batches or members: those give steps and scores their meaning.
    With another view, choosing the best weights begins anew.
    """
    path, _, step = config.resume_from.partition('@')
    source = Path(path)
    if not (source / 'checkpoints').is_dir():
        raise UserError(f'resume_from: {source} has no checkpoints')
    before = saved.load(source / 'config.json')
    checkpoints = Checkpoints(source, before.checkpoint.keep)
    try:
        steps = checkpoints.steps()
        if not steps or (step and step not in map(str, steps)):
            raise UserError(f'resume_from: {source} has the checkpoints {steps}, not {step or "any"}')
        state, meta = checkpoints.restore(like, int(step) if step else steps[-1])
    finally:
        checkpoints.close()
    now = flatten(saved.to_dict(config))
    old = flatten(saved.to_dict(before))
    for field in SAME_CLOCK if meta['step'] else ():
        if old[field] != now[field]:
            raise UserError(f'resume_from: {source} has {field}={old[field]}, not {now[field]}')
    seen_alike = all(old[field] == now[field] for field in SAME_VIEW)
    if hosts.is_first():
        shutil.copy(source / 'metrics.csv', workdir / 'metrics.csv')
        if seen_alike:
            _copy_best(source, workdir, config, meta['step'])
    hosts.wait('copied')
    return state, meta if seen_alike else {**meta, 'selection': Selection.start(config.members).to_json()}


def _copy_best(source: Path, workdir: Path, config: ConfigDict, step: int):
    """The best weights of each member, and of a head, up to this step."""
    for member in [*member_names(config), *(HEAD_PARTS if has_head(config) else ())]:
        stamps = [s for s in BestWeights(source).steps(member) if s <= step]
        if stamps:
            (workdir / 'best' / member).mkdir(parents=True, exist_ok=True)
            name = Path('best') / member / f'{stamps[-1]}.npz'
            shutil.copy(source / name, workdir / name)
