"""Start a run on disk, or resume it from its own checkpoint or from another run's."""

import shutil
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.members import member_names
from jaxcifar.config.values import flatten
from jaxcifar.data.expert_splits import rows_of
from jaxcifar.engine.couplings import check_images, head_parts
from jaxcifar.engine.paths import check_found, parse_rules, path_names
from jaxcifar.engine.population import check_batch
from jaxcifar.engine.state import TrainState, init_state
from jaxcifar.machine import hosts, status
from jaxcifar.machine.errors import UserError
from jaxcifar.runs import results_file, workdirs
from jaxcifar.runs.checkpoint import Checkpoints
from jaxcifar.runs.identical_members import warn_of_identical_members
from jaxcifar.runs.init_from import begin_from, warn_of_seen
from jaxcifar.runs.keeper import Keeper
from jaxcifar.runs.logs import metric_columns
from jaxcifar.runs.memory_check import check_run_fits
from jaxcifar.runs.metrics import group_names
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.selection import Selection
from jaxcifar.runs.session import Session, prepare
from jaxcifar.runs.sources import split_checkpoint
from jaxcifar.runs.tables import widen
from jaxcifar.runs.weights import BestWeights

FITTED = 2000  # training images that networks fit their first variables to

# Fields that make a different network of the same weights, or score it on other views of the images. If they
# change, scores before and after cannot be compared.
SAME_VIEW = ('view', 'ternary.rule', 'ternary.per', 'ternary.scale', 'ternary.layers', 'fusion.rule',
             'fusion.residual', 'fusion.heads', 'model.stem', 'data.image_size', 'eval.flip',
             'eval.shift')  # fmt: skip


def prepare_run(config: ConfigDict, workdir: Path) -> Session:
    """Return the session of a run in `workdir`.

    Raises `UserError` where the data or the devices do not suffice, or the workdir's run is another one.
    """
    workdirs.check_config(workdir, config)
    session = prepare(config)
    check_batch(config, session.mesh)
    if config.resume_from:
        session = workdirs.with_split_of(split_checkpoint(config.resume_from)[0], session)
    session = workdirs.as_begun(workdir, session) if workdirs.has_checkpoint(workdir) else session
    check(session)
    return session


def check(session: Session):
    """Raise `UserError` where the session's images or the memory do not suffice for its run."""
    check_run_fits(session)
    check_images(session.config, session.order.own)


def restore(session: Session, keeper: Keeper) -> tuple[TrainState, Progress, dict | None]:
    """Return the state and progress to continue from, and results.json if the run finished at that step.

    They come from the newest checkpoint, else from the run in config.resume_from, else from a fresh start.
    """
    config, workdir = session.config, keeper.workdir
    # The state of a fresh start comes first: every restore needs its structure and its devices.
    state, progress = _begin(session), Progress.start(session)
    # Its own checkpoint outranks both fields: a restarted command still names them.
    with status.during('reading the newest checkpoint'):
        restored = keeper.checkpoints.restore_newest(state)
    if restored is not None:
        keeper.saved = restored[1]['step'], restored[1]['pending']
    else:
        _check_start(config, state, keeper)
        if config.resume_from:
            restored = take_over(session, state, workdir)
        elif config.init_from:
            state = begin_from(config, session.population, state)
            if hosts.is_first():
                warn_of_seen(config, session.dataset, session.split)
    result = None
    if restored is not None:
        state, progress = restored[0], Progress.from_json(restored[1], session)
        _check_clock(progress, session)
        state = with_active(session, state, progress)  # early_stopping may have changed
        # A pending epoch is not evaluated yet, so results.json cannot be about it.
        result = None if progress.pending else results_file.read(workdir, progress.step)
        if result is not None:  # its rows were written after the checkpoint
            progress.metrics_length = result['metrics_length']
    # A continued run printed this warning when it started.
    if keeper.saved is None:
        warn_of_identical_members(session, state)
    # A finished run needs no best weights to continue, so their loss does not stop it.
    needs_best = result is None or progress.goes_on(session)
    if needs_best and (reason := lost_best(keeper.best, session, progress)):
        raise UserError(
            f'{reason}: put it back, or continue with --config.resume_from={workdir} in a new --workdir, '
            'where the best weights are chosen from later epochs only'
        )
    if not keeper.checkpoints.set_aside:  # or the restore has already printed it
        _warn_of_losses(workdir, progress)
    # Steps after the checkpoint are taken again, and may choose other weights.
    keeper.best.forget_after(progress.step)
    return state, progress, result


def _check_start(config: ConfigDict, state: TrainState, keeper: Keeper):
    """Raise `UserError` if a run without a checkpoint must not start here, or its config cannot mean that."""
    trees = [*state.params, *(state.head.params.values() if state.head else ())]
    rules = parse_rules('optimizer.decay', config.optimizer.decay, bare=1.0)
    check_found('optimizer.decay', rules, [path for tree in trees for path in path_names(tree)])
    if keeper.checkpoints.set_aside:  # starting over: no checkpoint leads to these results and weights
        results_file.set_aside(keeper.workdir)
    elif (keeper.workdir / results_file.FILE).exists():
        # A fresh start would delete the best weights and the tables of a finished run.
        raise UserError(
            f'{keeper.workdir} holds a finished run whose checkpoints are gone',
            'put them back, or choose a new --workdir',
        )


def lost_best(best: BestWeights, session: Session, progress: Progress) -> str | None:
    """Return what is wrong with the files of the best weights so far, or None if nothing is."""
    for k, member in enumerate(session.names):
        step = int(progress.selection.best_epoch[k]) * progress.epoch_steps
        # The parts of a head are kept whenever the members are.
        for name in [member, *head_parts(session.config)] if step else ():
            # A state that was saved in mid-evaluation will choose the weights of its own step again.
            if progress.pending and progress.step in best.steps(name):
                continue
            if step not in best.steps(name):
                return f'{best.folder / name / f"{step}.npz"}, the best weights so far, is gone'
            try:
                best.load(name, step)
            except UserError as error:
                return error.fault
    return None


def _begin(session: Session) -> TrainState:
    """Return the state before the first step; some networks fit their first variables to images."""
    images = None
    if session.population.needs_images:
        # Members of an expert split have their own images; any member's may fit the first variables.
        seen = np.unique(np.concatenate(rows_of(session.split.train)))
        # Images that are sorted by class would begin with those of one class alone.
        is_sorted = (np.diff(session.dataset.y_train[seen]) >= 0).all()
        spread = np.linspace(0, len(seen) - 1, min(FITTED, len(seen))).astype(int)
        images = session.dataset.normalised(seen[spread] if is_sorted else seen[:FITTED])
    with status.during('drawing the first weights'):
        return init_state(session.config, session.population, images)


def with_active(session: Session, state: TrainState, progress: Progress, **fields) -> TrainState:
    """Return the state with the current mask of active members, and with new `fields`, on the devices."""
    # Patience is no part of the state, so the mask is derived again instead of restored.
    fields['active'] = progress.selection.active(session.config)
    return state.replace(**hosts.put(fields, session.population.sharding()))


def _check_clock(progress: Progress, session: Session):
    """Raise `UserError` where the number of devices has changed the steps of an epoch."""
    if progress.step and progress.epoch_steps != session.epoch_steps:
        raise UserError(
            f'an epoch had {progress.epoch_steps} steps and now has {session.epoch_steps}, because the last '
            'batch is trimmed to split evenly: continue on as many devices as before'
        )
    progress.epoch_steps = session.epoch_steps


def _warn_of_losses(workdir: Path, progress: Progress):
    """Warn on stderr if checkpoints that this run once wrote are gone."""
    best = BestWeights(workdir)
    stamps = [step for member in best.folder.glob('*') for step in best.steps(member.name)]
    # An epoch's best weights are written before its checkpoint, so being one epoch ahead is normal.
    last = max(stamps, default=0) - progress.epoch_steps
    # results.json also proves a later step where no weights were chosen.
    if max(last, results_file.last_step(workdir)) > progress.step:
        where = f'step {progress.step}' if progress.step else 'the beginning'
        print(f'warning: newer checkpoints of {workdir} are missing; resuming from {where}', file=sys.stderr)


def take_over(session: Session, like: TrainState, workdir: Path) -> tuple[TrainState, dict]:
    """Return (state, meta) of config.resume_from, WORKDIR or WORKDIR@STEP; copy its metrics and best weights.

    The new run continues from that step as if it were its own, under its own config. That may have another
    recipe, but not other data, batches or members, which give steps and scores their meaning. With another
    view, the choice of the best weights starts over.
    """
    config = session.config
    # Find the other run and the checkpoint to take.
    source, step = split_checkpoint(config.resume_from)
    if not (source / 'checkpoints').is_dir():
        raise UserError(f'resume_from: expected a workdir with checkpoints, got {source}')
    before = saved.load(source / 'config.json')
    checkpoints = Checkpoints(source, before.checkpoint.keep)
    try:
        steps = checkpoints.steps()
        if not steps or (step and step not in map(str, steps)):
            raise UserError(
                f'resume_from: expected one of the checkpoints {steps} of {source}, got {step or "none"}'
            )
        state, meta = checkpoints.restore(like, int(step) if step else steps[-1])
    finally:
        # orbax keeps a thread for each open folder, whatever was raised.
        checkpoints.close()
    # A state of step 0 has no history yet, so that nothing in its clock can differ.
    now = flatten(saved.to_dict(config))
    old = flatten(saved.to_dict(before))
    for field in saved.SAME_CLOCK if meta['step'] else ():
        if old[field] != now[field]:
            has = f'{field}={old[field]}, as {source} has it'
            raise UserError(f'resume_from: expected {has}, got {now[field]}')
    if meta['step']:
        workdirs.as_begun(source, session, f'begin with its weights: --config.init_from={source}')
    # Scores compare only between networks that see their weights alike.
    seen_alike = all(old[field] == now[field] for field in SAME_VIEW)
    lost = seen_alike and lost_best(BestWeights(source), session, Progress.from_json(meta, session))
    if hosts.is_first():
        if lost:
            print(f'warning: {lost}; they are chosen among the epochs to come', file=sys.stderr)
        if (source / 'metrics.csv').exists():
            shutil.copy(source / 'metrics.csv', workdir / 'metrics.csv')
            # Another coupling has losses of its own, and a long tail groups of classes.
            needed = metric_columns(config, group_names(session.split.class_counts))
            meta['metrics_length'] = widen(workdir / 'metrics.csv', meta['metrics_length'], needed)
        if seen_alike and not lost:
            _copy_best(source, workdir, config, meta['step'])
    # The other hosts read these files, and must not look before they are there.
    hosts.wait('copied')
    if seen_alike and not lost:
        return state, meta
    # Scores of another view, or of weights that are gone, would never be beaten fairly.
    return state, {**meta, 'selection': Selection.start(config.members).to_json()}


def _copy_best(source: Path, workdir: Path, config: ConfigDict, step: int):
    """Copy the best weights of each member, and of a head, up to this step."""
    for member in [*member_names(config), *head_parts(config)]:
        # The other run may have gone on past this step; its later weights are not of this history.
        stamps = [s for s in BestWeights(source).steps(member) if s <= step]
        if stamps:
            (workdir / 'best' / member).mkdir(parents=True, exist_ok=True)
            name = Path('best') / member / f'{stamps[-1]}.npz'
            shutil.copy(source / name, workdir / name)
