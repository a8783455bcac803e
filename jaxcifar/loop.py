"""Run the one training loop: evaluate, save, next batch, step, write; and the test images at the end."""

import contextlib
import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar import calibrate, pictures
from jaxcifar.engine.couplings import has_head
from jaxcifar.engine.state import TrainState, eval_weights, new_sums, to_device_layout
from jaxcifar.machine import hosts, process, status
from jaxcifar.machine.profile import Compiled, Tracer
from jaxcifar.runs import ending, results, results_file, session_log, sparsity, workdirs
from jaxcifar.runs.console import Clock, Console
from jaxcifar.runs.continuation import changes, finished, preempted, told_what_is_kept
from jaxcifar.runs.evaluation import Evaluation, member_metrics
from jaxcifar.runs.keeper import Keeper
from jaxcifar.runs.logs import open_logger
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.resume import prepare_run, restore, with_active
from jaxcifar.runs.session import Session, feed_steps, later_batches, make_step


def train(config: ConfigDict, workdir: str | Path) -> dict:
    """Train or resume a run in `workdir`; returns the contents of its results.json.

    Raises `UserError` for errors that the user can fix, and `Preempted` when all is saved after a SIGTERM.
    """
    # A wrong config must end before the workdir is made. Only the copy is filled in: what the caller leaves
    # unset, such as member_ids, stays unset for the next call.
    config, workdir = finalize(copy.deepcopy(config)), Path(workdir).expanduser()
    process.keep_compiled(config.compile_cache)
    # The lock is held to the end: two processes would overwrite each other's checkpoints.
    log = sys.stdout if hosts.is_first() else None
    with process.locked(workdir), process.signals() as terminated, status.logged(log):
        session = prepare_run(config, workdir)
        with contextlib.closing(Keeper(session, workdir)) as keeper:
            state, progress, result = restore(session, keeper)
            if result is None or progress.goes_on(session):
                with told_what_is_kept(keeper, progress):
                    return _train(session, keeper, state, progress, terminated)
        # Nothing is left to do, but a calibration may have been interrupted.
        if hosts.is_first():
            print(*finished(session, workdir, progress, result), sep='\n', flush=True)
        if session.split.class_counts is not None:
            calibrate.calibrate_if_stale(workdir, progress.step, Evaluation(session))
        return result


def _train(session: Session, keeper: Keeper, state: TrainState, progress: Progress, terminated) -> dict:
    """Take steps from `state` on until the end of the run; returns what results.json holds."""
    with contextlib.ExitStack() as stack:
        logger, console, tracer = _open(session, keeper.workdir, state, progress, stack)

        def poll():
            """Save and leave if SIGTERM came."""
            if terminated.is_set():
                keeper.save(state, progress, logger)
                keeper.checkpoints.wait()
                raise preempted(session, keeper.workdir, progress.step)

        # One compiled step and one evaluation serve the whole run.
        state = to_device_layout(state)
        train_step = _make_step(session, state, console.detail, poll)
        stack.push(train_step.leave)
        evaluation, clock = Evaluation(session, poll), Clock(train_step)
        feed = stack.enter_context(contextlib.closing(feed_steps(session, progress.step)))
        terminated.can_save = True
        if progress.step:
            keeper.save(state, progress, logger)  # a takeover is saved; a resumed run has this step already

        while True:
            # Evaluate at the end of an epoch. If SIGTERM interrupts this, it is as if it had never begun.
            validated: dict[str, np.ndarray] = {}
            if progress.pending:
                seconds, rate = _log_time(clock, state, progress, logger)
                row = _training_means(session, keeper, state, progress)
                validated = _validate(session, evaluation, state, progress, clock)
                logger.write(progress.epoch, progress.step, 'train', row)
                row |= _choose(session, keeper, state, progress, validated, logger, console, clock)
                state = with_active(session, state, progress, sums=new_sums(session.config))
                progress.pending, progress.lr = False, None
                console.epoch(progress.epoch, session.config.epochs, _shown(session, row), seconds, rate)

            # Save, and leave when all is done or SIGTERM came.
            if progress.save_is_due(session):
                with clock.waiting('saving'):
                    keeper.save(state, progress, logger)
            poll()
            if not progress.goes_on(session):
                break

            # Get the next batch and take the step. The host stays a few steps ahead of the devices and waits
            # only for them: within an epoch it fetches no numbers except those that a row needs.
            clock.await_batch()
            call, batch = next(feed)
            clock.start()
            tracer.before(call.start)
            state, row = train_step(state, batch)
            train_step.expect(state, later_batches(session, call, batch))
            tracer.after(call.stop - 1, row)
            progress.step, progress.pending = call.stop, call.stop % session.epoch_steps == 0

            # Write.
            clock.count(batch['label'].shape[-1], len(call))
            console.step(progress.step, clock.rate())
            _log_batch(session, keeper, progress, row, logger)

        feed.close()
        return _finish(session, keeper, evaluation, state, progress, validated, logger, console, clock)


def _open(session: Session, workdir: Path, state: TrainState, progress: Progress, stack):
    """Return a run's logger, console and tracer, to be closed by the stack, and print what the run does."""

    def closed(resource):
        return stack.enter_context(contextlib.closing(resource))

    # The stack closes in reverse, so that the tracer's last lines still reach the console.
    logger = closed(open_logger(session, workdir, progress))
    news = changes(session, workdir, progress)  # compared with the old config.json, which `record` overwrites
    workdirs.record(workdir, session.config, session.dataset, state.params, session.split)
    console = closed(Console(session.chooses_on, progress.step, session.total))
    console.greet(session, progress.step, state.params, news)
    tracer = Tracer(session.config.profile.steps, workdir, progress.step, session.total, console.say)
    stack.callback(tracer.stop)
    return logger, console, tracer


def _make_step(session: Session, state: TrainState, say: Callable, poll: Callable) -> Compiled:
    """Return the step as a program that says when it has compiled."""
    # Several hosts must poll equally often, but one may still be compiling when another has finished.
    polled = poll if hosts.alone() else lambda: None
    return Compiled(make_step(session, state), say, polled, session.config.steps_per_call > 1)


def _training_means(session: Session, keeper: Keeper, state: TrainState, progress: Progress) -> dict:
    """Return {column: [K]} of the epoch that is over: means over its images, and the last learning rate.

    Raises `UserError` where a loss is not finite.
    """
    # The only numbers of an epoch that leave the devices: sums since its start.
    sums = jax.device_get(state.sums)
    if progress.lr is None:
        # The rate of the epoch's last step, since `step` counts steps that are over.
        rates = session.learning_rates(progress.step - 1)
        progress.lr = np.asarray(rates)[: len(session.outputs)]
    means = {name: value / sums['count'] for name, value in sums.items() if name != 'count'}
    keeper.require_finite(progress, means['loss'])
    return {**means, 'lr': progress.lr}


def _log_time(clock: Clock, state: TrainState, progress: Progress, logger) -> tuple[float, float]:
    """Return and log (seconds, images a second) of the epoch that is over.

    There are none where only an evaluation was left to do.
    """
    # The last steps may still be in flight: the epoch's seconds end when they do.
    jax.block_until_ready(state.sums)
    seconds, rate = clock.stop()
    if seconds:
        logger.write_timing(progress.epoch, progress.step, seconds, rate, clock.waits())
    return seconds, rate


def _log_batch(session: Session, keeper: Keeper, progress: Progress, row: dict, logger):
    """Log a step's numbers every log.every_steps steps; no others are fetched within an epoch."""
    # Each fetch waits for the devices, so a row per step would slow training down.
    every = session.config.log.every_steps
    if every and progress.step % every == 0:
        row = jax.device_get(row)
        keeper.require_finite(progress, row['loss'])
        logger.write(progress.step / session.epoch_steps, progress.step, 'train_batch', row)


def _validate(
    session: Session, evaluation: Evaluation, state: TrainState, progress: Progress, clock: Clock
) -> dict:
    """Return {name: logits} of the images that choose the weights; {} where no evaluation is due."""
    # The last epoch is always evaluated: its weights may be the best.
    due = progress.epoch % session.config.eval.every_epochs == 0 or progress.step >= session.total
    if session.chooses_on is None or not due:
        return {}
    with clock.waiting('evaluation'):
        return {session.chooses_on: evaluation.logits(eval_weights(state), session.chooses_on)}


def _choose(
    session: Session, keeper: Keeper, state: TrainState, progress: Progress, validated: dict, logger, console,
    clock: Clock,
) -> dict:  # fmt: skip
    """Keep the weights that are new bests, and log; returns what the console shows of it."""
    selection, accuracy = progress.selection, None
    for name, logits in validated.items():
        metrics = member_metrics(logits, session.images[name])
        # Choose first: the row shows the best and the patience after this epoch.
        accuracy = metrics['accuracy']
        with clock.waiting('saving'):
            stopped = keeper.choose(state, progress, accuracy)
        console.stopped(session, progress, stopped)
        row = {**metrics, **selection.columns(len(session.outputs))}
        logger.write(progress.epoch, progress.step, name, row)
    return {'validation': accuracy, 'best': selection.best if selection.best_epoch.all() else None}


def _shown(session: Session, row: dict) -> dict:
    """Return the numbers that the console shows: those of the fused prediction, where there is one."""
    if not has_head(session.config):
        return row
    return {name: value if value is None else value[-1:] for name, value in row.items()}


def _finish(
    session: Session, keeper: Keeper, evaluation: Evaluation, state: TrainState, progress: Progress,
    validated: dict[str, np.ndarray], logger, console: Console, clock: Clock,
) -> dict:  # fmt: skip
    """Evaluate the test images and write all that a run leaves behind; returns what results.json holds.

    validated: {part: logits of the last weights} of parts that need not be evaluated again.
    """
    workdir = keeper.workdir
    speed = session_log.record_speed(workdir, clock)
    keeper.wait_for_best()  # their results are read from disk
    scored = results.score(evaluation, workdir, state, progress, validated)
    result = results.summarise(session, progress, scored)
    sparsity.record(session, workdir, scored, result)
    results.log(session, progress, scored, workdir, logger)
    keeper.checkpoints.wait()
    # Delete the best weights to which only deleted checkpoints could have returned.
    keeper.best.prune(keeper.checkpoints.steps())
    # results.json marks the run as finished, so everything else must be on disk before it.
    result['metrics_length'] = logger.flush()
    results_file.write(workdir, result)
    console.end([*speed, *session.dataset.complaints(), *ending.lines(result)])
    # What follows can be made again at any time.
    if session.split.class_counts is not None:
        calibrate.calibrate_if_stale(workdir, progress.step, evaluation, scored)
    logits = scored.get('best', scored['last']).logits['test']
    show = partial(logger.write_pictures, progress.epoch)
    drawn = pictures.write_pictures(session, workdir, logits, console.say, show)
    console.end(ending.where_to_go(workdir, len(drawn)))
    return result
