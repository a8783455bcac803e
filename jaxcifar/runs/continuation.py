"""Say how a run continues: what a resumed run changes, what ended a finished one, and the next command."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.resume_command import resume_command
from jaxcifar.config.values import flatten
from jaxcifar.engine.couplings import make_learning_rates
from jaxcifar.engine.head import PARTS
from jaxcifar.machine import status
from jaxcifar.machine.errors import Interrupted, Preempted, UserError
from jaxcifar.runs import ending
from jaxcifar.runs.keeper import Keeper
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.session import Session
from jaxcifar.runs.sources import split_checkpoint

# Fields, or groups of fields, that do not change any number of a run.
SILENT = ('resume_from', 'data.root', 'log', 'profile', 'compile_cache', 'steps_per_call', 'checkpoint')
NOTICED = 5e-3  # relative difference of learning rates that is worth a line


def changes(session: Session, workdir: Path, progress: Progress) -> list[str]:
    """Return lines that say what a resumed run does differently from now on; [] if it changes nothing.

    The config is compared with config.json of this run, or of the run in resume_from, before it is rewritten.
    """
    config = session.config
    if not progress.step:
        return []
    other = split_checkpoint(config.resume_from)[0] if config.resume_from else workdir
    source = workdir if (workdir / 'config.json').exists() else other
    try:
        old = saved.load(source / 'config.json')
    except UserError:  # the file is lost, so there is nothing to compare with
        return []
    before, after = flatten(saved.to_dict(old)), flatten(saved.to_dict(config))
    differ = [field for field in after if before.get(field) != after[field]]
    shown = [field for field in differ if not any(f'{field}.'.startswith(f'{s}.') for s in SILENT)]
    lines = [f'continued from {config.resume_from}'] if source != workdir else []
    lines += [f'changed: {", ".join(f"{f} {before.get(f)} -> {after[f]}" for f in shown)}'] if shown else []
    # Patience counts evaluations of the past too, so that a stopped member may go on.
    was, now = progress.selection.active(old), progress.selection.active(config)
    for words, members in (('trains again', now & ~was), ('stops here', was & ~now)):
        lines += [f'{session.names[k]} {words}: early_stopping has changed' for k in np.flatnonzero(members)]
    # Another number of members is another run, whose rates cannot be compared.
    comparable = shown and old.members == config.members
    return lines + (_rate_changes(old, session, progress.step) if comparable else [])


def _rate_changes(old: ConfigDict, session: Session, step: int) -> list[str]:
    """Return what happens to the learning rates of the members, and of a head's parts, from `step` on."""
    config, epoch_steps = session.config, session.epoch_steps
    # The next step, and the first step of each epoch that both schedules have.
    ends = min(old.epochs, config.epochs)
    steps = np.array([step, *range(epoch_steps * (step // epoch_steps + 1), epoch_steps * ends, epoch_steps)])
    was = _rates(old, epoch_steps, np.minimum(steps, epoch_steps * old.epochs - 1))
    now = _rates(config, epoch_steps, np.minimum(steps, session.total - 1))
    if was.shape != now.shape:
        return []
    count, lines = len(session.names), []
    for name, columns, schedule in [
        ('the learning rate', slice(count), 'schedule.name'),
        *((f"{part}'s learning rate", slice(count + i, count + i + 1), 'fusion.schedule')
          for i, part in enumerate(PARTS)),
    ]:  # fmt: skip
        a, b = was[:, columns], now[:, columns]
        # Infinite rates are alike, too: a run that has them says so itself.
        far = np.flatnonzero(~np.isclose(a, b, NOTICED, 0, equal_nan=True).all(1))
        if len(far):
            a, b = a[far[0]], b[far[0]]
            verb = 'lifts' if (b >= a).all() else 'lowers' if (b <= a).all() else 'moves'
            cause, epoch = _cause(old, config, schedule), steps[far[0]] // epoch_steps
            lines.append(f'{cause} {verb} {name} at epoch {epoch} from {_numbers(a)} to {_numbers(b)}')
    return lines


def _rates(config: ConfigDict, epoch_steps: int, steps: np.ndarray) -> np.ndarray:
    """Return learning rates [n, K], or [n, K+2] with a head, at n steps."""
    return np.asarray(jax.jit(jax.vmap(make_learning_rates(config, epoch_steps)))(steps), np.float64)


def _cause(old: ConfigDict, config: ConfigDict, field: str) -> str:
    """Return what moves the rates: 'a longer cosine', or 'the new schedule' where other fields differ too."""
    before, after = flatten(old), flatten(config)
    same = all(before.get(f) == v for f, v in after.items() if f.startswith(('schedule.', 'optimizer.lr')))
    if old.epochs == config.epochs or not same or before[field] != after[field]:
        return 'the new schedule'
    kind = {'warm_restarts': 'cycle of warm restarts'}.get(after[field], after[field])
    return f'a {"longer" if config.epochs > old.epochs else "shorter"} {kind}'


def _numbers(rates: np.ndarray) -> str:
    """Return the rates as text, or a single number if they are all equal."""
    shown = [f'{rate:.3g}' for rate in rates]
    return shown[0] if len({*shown}) == 1 else ', '.join(shown)


def finished(session: Session, workdir: Path, progress: Progress, result: dict) -> list[str]:
    """Return lines with a finished run's scores, what ended it, and the command that would continue it."""
    config, names = session.config, session.names
    patience, over = config.early_stopping.patience, progress.step >= session.total
    stopped = [
        f'{names[k]} (its best is epoch {progress.selection.best_epoch[k]})'
        for k in np.flatnonzero(~progress.selection.active(config))
    ]
    taken = max(config.epochs, progress.epoch)  # epochs may have been lowered since
    has = 'reached' if taken == config.epochs else f'has {taken} epochs, more than'
    ends = [f'it {has} epochs={config.epochs}'] if over else []
    if stopped:
        at = '' if over else f' by epoch {progress.epoch} of {config.epochs}'
        ends.append(f'early_stopping.patience={patience} stopped {", ".join(stopped)}{at}')
    # Raise exactly the limits that prevent another step.
    more: dict[str, object] = {'epochs': 2 * taken} if over else {}
    more |= {'early_stopping.patience': 2 * patience} if len(stopped) == len(names) else {}
    lines = [f'{workdir} is finished: {"; ".join(ends)}']
    with contextlib.suppress(KeyError, TypeError):  # results of an older version may lack a number
        lines += ending.lines(result)
    return [*lines, f'to continue it: {resume_command(workdir, more)}']


def preempted(session: Session, workdir: Path, step: int) -> Preempted:
    """Return the exception to raise after SIGTERM, once everything is saved at `step`."""
    return Preempted(f'saved at {session.place(step)}; {_go_on(workdir)}')


def _go_on(workdir: Path) -> str:
    return f'to continue: {resume_command(workdir)}'


@contextlib.contextmanager
def told_what_is_kept(keeper: Keeper, progress: Progress) -> Iterator[None]:
    """Finish the save in progress on Ctrl-C, then end the block with a message that says what is saved."""
    try:
        yield
    except KeyboardInterrupt:
        with status.during('stopping: finishing the save in progress'):
            keeper.checkpoints.wait()
        kept = keeper.checkpoints.steps()
        raise Interrupted(_interrupted(keeper.session, keeper.workdir, progress.step, kept)) from None


def _interrupted(session: Session, workdir: Path, step: int, kept: list[int]) -> str:
    """Return the message for Ctrl-C at `step`, when the checkpoints in `kept` are on disk."""
    if not kept:
        return f'stopped at step {step}, before the first save; to start over: {resume_command(workdir)}'
    lost = step - kept[-1]
    taken = f' ({lost} later step{"s" * (lost != 1)} will be repeated)' if lost > 0 else ''
    return f'stopped; saved up to {session.place(kept[-1])}{taken}; {_go_on(workdir)}'
