"""Save and restore a run. This is the only file that uses orbax.

WORKDIR/checkpoints/STEP  the whole state, the newest N
WORKDIR/damaged/STEP      a checkpoint whose files have changed since it was saved
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxcifar.engine.state import TrainState
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import reading, sha256, write_text

for _name in ('absl', 'asyncio'):  # orbax narrates, and prints tracebacks of what it raises
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

SEAL = 'sha256.json'  # a checkpoint's files and their checksums; orbax does not notice wrong bytes


class Damaged(UserError):
    """Report files that are no longer as they were written."""


def saved_steps(workdir: Path) -> list[int]:
    """Return the steps of a workdir's complete checkpoints on disk, oldest first; nothing is opened."""
    # A checkpoint without a seal cannot be checked and does not count. Orbax's own list will not do: it omits
    # checkpoints that are to be deleted after the current save, and that stay if this save fails.
    return sorted(int(path.parent.name) for path in (workdir / 'checkpoints').glob(f'[0-9]*/{SEAL}'))


class Checkpoints:
    """Manage the checkpoints of one run, each of which is a whole state.

    Saving is asynchronous: the arrays are copied off the devices, and written while training continues.
    A checkpoint is complete when it is sealed; only then are older ones deleted. If only one is kept,
    there is none to fall back on when it is damaged. `before_seal()` waits for whatever else a checkpoint
    needs on disk.
    """

    def __init__(self, workdir: Path, keep: int, before_seal: Callable[[], None] = lambda: None):
        self.folder = (workdir / 'checkpoints').absolute()
        self._damaged = self.folder.parent / 'damaged'
        self._replaced = self.folder.parent / 'replaced'
        self._keep = keep
        self._before_seal = before_seal
        self._saving = 0
        self.set_aside: list[int] = []  # steps whose files were damaged
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(self._keep),
            # The seal must be inside before the folder gets its final name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        # Orbax reads a file of its own in each checkpoint here, which the seal does not cover.
        with reading(self.folder, 'move the checkpoint with the damaged _CHECKPOINT_METADATA away'):
            return ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints on disk, oldest first."""
        return saved_steps(self.folder.parent)

    def save(self, step: int, state: TrainState, meta: dict):
        """Start saving; a failure of the previous save is raised here.

        The epoch's sums go into the JSON, because their names depend on the coupling. Evaluation, and runs
        with another coupling, must be able to load the state, too.
        """
        self._manager.wait_until_finished()
        sums = {name: value.tolist() for name, value in jax.device_get(state.sums).items()}
        state = state.replace(sums=None)
        meta = {**meta, 'sums': sums, 'shapes': _shapes(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(_fields(state)), meta=ocp.args.JsonSave(meta))
        # orbax does not write a step that it already has.
        again = step in self._manager.all_steps()
        if again:  # The old one was saved in mid-evaluation, and is kept until the new one is complete.
            self._set_aside(step, self._replaced)
        # The callback runs in orbax's thread, and learns the step from here.
        self._saving = step
        self._manager.save(step, args=args)
        if again:
            self.wait()
            shutil.rmtree(self._replaced, ignore_errors=not hosts.is_first())

    def _seal(self):
        """Write a checkpoint's checksums, after its items are written and before it gets its final name."""
        folder = next(self.folder.glob(f'{self._saving}.orbax-checkpoint-tmp*'))
        # Only the items are sealed: orbax may still write files of its own beside them.
        items = [p for item in ('state', 'meta') for p in (folder / item).rglob('*') if p.is_file()]
        sums = json.dumps({str(p.relative_to(folder)): sha256(p) for p in items})
        self._before_seal()
        write_text(folder / SEAL, sums)

    def wait(self):
        """Wait until all saves are on disk; raise the error of one that failed."""
        self._manager.wait_until_finished()

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict]:
        """Return (state, meta) of a step, with the structure and on the devices of the state `like`."""
        self._check(step)
        # The JSON comes first: it tells whether the arrays fit, before orbax fails on them.
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=args)['meta']
        # Sums that only the other coupling has are dropped; new ones keep their zeros.
        sums = dict(like.sums)
        for name in sums.keys() & meta['sums'].keys():
            value = np.array(meta['sums'][name], sums[name].dtype)
            sums[name] = hosts.put(value, sums[name].sharding)
        del meta['sums']
        like = like.replace(sums=None)
        # This error can say what may differ; an error from orbax would only show a shape.
        other = UserError(
            f'{self._file(step)} was saved with another network, number of classes or members, view, '
            'optimizer (its clip, decay and rates included), ema or coupling',
            'use that config, or start from its weights with init_from',
        )
        if meta.pop('shapes') != _shapes(like):
            raise other
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _fields(like))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        try:
            restored = self._manager.restore(step, args=args)['state']
        except ValueError:  # the files are whole: a link of the optimiser's chain has no arrays, and no shape
            raise other from None
        return like.replace(**restored).replace(sums=sums), meta

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict] | None:
        """Return the newest undamaged (state, meta), or None if there is none.

        A damaged checkpoint is set aside with a warning on stderr, and the previous one is tried. Only the
        process that trains may call this, because it deletes unfinished saves of a killed process.
        """
        if hosts.is_first():
            for unfinished in self.folder.glob('*.orbax-checkpoint-tmp*'):
                shutil.rmtree(unfinished)
            self._put_back()
        hosts.wait('cleared')
        # The manager listed the folder when it was opened, before it was cleared.
        self._manager.reload()
        # Try the newest first, and fall back one step at a time.
        steps = sorted(self._manager.all_steps())
        while steps:
            step = steps.pop()
            try:
                return self.restore(like, step)
            except Damaged as error:
                instead = f'resuming from step {steps[-1]}' if steps else 'starting from the beginning'
                if hosts.is_first():
                    print(f'warning: {error}; {instead}', file=sys.stderr)
                self._set_aside(step, self._damaged)
                self.set_aside.append(step)
        return None

    def _check(self, step: int):
        """Raise `Damaged` unless all files of a checkpoint are as they were when it was sealed."""
        name, damage = SEAL, ''
        try:
            for name, digest in json.loads(self._file(step, SEAL).read_text()).items():
                if sha256(self._file(step, name)) != digest:
                    raise ValueError('its bytes have changed')
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            damage = f'{name}: {reason}'
        # All hosts must fall back together, even if one alone sees the damage.
        if hosts.anywhere(bool(damage)):
            raise Damaged(f'checkpoint {self._file(step)} is damaged: {damage or "as another host sees it"}')

    def _set_aside(self, step: int, folder: Path):
        self._manager.close()
        if hosts.is_first():
            folder.mkdir(exist_ok=True)
            shutil.rmtree(folder / str(step), ignore_errors=True)
            os.replace(self._file(step), folder / str(step))
        hosts.wait('set aside')
        self._manager = self._open()

    def _put_back(self):
        """Put back what `save` had set aside when the process was killed."""
        # If the new checkpoint got its final name it is complete, and the old one is not needed.
        for path in self._replaced.glob('[0-9]*'):
            if not self._file(int(path.name)).exists():
                os.replace(path, self._file(int(path.name)))
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _file(self, step: int, *names: str) -> Path:
        return self.folder.joinpath(str(step), *names)

    def close(self):
        """Wait for the writing thread and let go of the folder."""
        self._manager.close()


def _fields(state: TrainState) -> dict:
    """Return the fields to write; a state without a head is written as before heads existed."""
    return {name: tree for name, tree in vars(state).items() if name != 'head' or tree is not None}


def _shapes(tree) -> list[list[int]]:
    return [list(leaf.shape) for leaf in jax.tree.leaves(tree)]
