"""Save configs in a workdir as JSON, load them, and decide what a continued run may change."""

import json
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from jaxcifar.config.fields import check_values, get_config
from jaxcifar.config.values import flatten
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json
from jaxcifar.machine.text import show

# What a continued run may change: fields, or groups of fields, that no past step depended on.
RESUMABLE = (
    'epochs',
    'devices',
    'data.root',
    'data.loader',
    'data.workers',
    'files',  # a run remembers which images they named
    'early_stopping',
    'eval.batch_size',
    'checkpoint',
    'log',
    'profile',
    'members_as',
    'steps_per_call',
    'compile_cache',
)


# Fields that give a run's steps and scores their meaning. If they differ, no run takes over another's state.
SAME_CLOCK = ('dataset', 'network', 'members', 'member_ids', 'split', 'batch_size', 'optimizer.accumulate',
              'data.drop_last', 'data.validation', 'data.validation_size', 'data.split_seed',
              'long_tail.imbalance', 'long_tail.seed', 'experts.count', 'experts.seed',
              'experts.holdout', 'experts.validation', 'experts.shared', 'experts.unique',
              'files.train', 'files.validation')  # fmt: skip
# Fields, or groups of fields, that do not affect whether a state fits. A new run may change them.
RECIPE = ('loss', 'label_smoothing', 'tau', 'augment', 'augment_each', 'mutual', 'schedule', 'optimizer.lr',
          'optimizer.weight_decay', 'optimizer.rest', 'eval', 'fusion.alpha', 'fusion.lr', 'fusion.lr_head',
          'fusion.dropout', 'fusion.clip', 'fusion.clip_all', 'fusion.freeze_epochs')  # fmt: skip
# Fields that decide the shapes of weights, or what they are for. If these differ, weights fit only by chance.
SHAPES = ('dataset', 'network', 'members', 'member_ids', 'split', 'coupling', 'view', 'model', 'ternary',
          'fusion', 'experts', 'init_from', 'resume_from')  # fmt: skip

# The behaviour of runs before a field existed, where that was not today's default.
BEFORE = {'ternary.scale_start': 0.0}
# Fields, or groups of fields, that only some runs use: in others a new default changes nothing.
USED: dict[str, Callable[[ConfigDict], bool]] = {
    'data.image_size': lambda config: not config.dataset.startswith('npz:'),
    'ternary': lambda config: 'ternary' in config.view,
    **dict.fromkeys(
        ('ternary.scale_start', 'ternary.scale_lr', 'ternary.scale_decay'),
        lambda config: config.ternary.rule == 'ttq',
    ),
}


def to_dict(config: ConfigDict) -> dict:
    """Return a plain nested dict, as JSON would give it back."""
    return json.loads(config.to_json_best_effort())


def from_dict(fields: dict) -> ConfigDict:
    """Return the config that `to_dict` saved; newer fields get the behaviour from before they existed.

    Raises `UserError` if it cannot be a run's config: a field has an invalid value, or there are no members.
    """
    # A file of an older version lacks newer fields. Most defaults keep the behaviour without the field.
    defaults = get_config()
    defaults.update_from_flattened_dict(BEFORE)
    merged = _merge(to_dict(defaults), fields)
    # JSON has no tuples, and a field that took one compares unequal to a list.
    config = ConfigDict(json.loads(json.dumps(merged), object_hook=_tuples))
    check_values(config)
    if not config.member_ids or len(config.member_ids) != config.members:
        raise UserError(f'expected members={config.members} as member_ids, got {config.member_ids}')
    return config


def _merge(defaults: dict, fields: dict) -> dict:
    if not isinstance(fields, dict):
        raise UserError(f'a group of fields is damaged: it must be a JSON object, got {show(fields)}')
    # Fields that are unknown here stay: a newer version may have written them.
    groups = {k: _merge(v, fields.get(k, {})) for k, v in defaults.items() if isinstance(v, dict)}
    return {**defaults, **fields, **groups}


def load(path: Path) -> ConfigDict:
    """Return a resolved config from a workdir's config.json, or raise `UserError` where there is none."""
    fields = read_json(path)
    if fields is None:
        raise UserError(
            f'expected a workdir, got {path.parent}, which has no {path.name}: name the folder of a run'
        )
    try:
        return from_dict(fields)
    except UserError as error:
        remedy = 'restore the original file'
        raise UserError(f'{path} is not a jaxcifar file ({error}): {remedy}') from None


def _tuples(node: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in node.items()}


def refuse_changes(old: ConfigDict, new: ConfigDict, workdir: Path):
    """Raise `UserError` if a field that is not resumable differs, and say how to go on in a new workdir."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    unused = tuple(field for field, is_used in USED.items() if not (is_used(old) or is_used(new)))
    changed = [
        field
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field) and not _is_in(field, (*RESUMABLE, *unused))
    ]
    if not changed:
        return
    remedy = 'choose a new --workdir'
    # The remedy depends on what survives the change: the whole state, or only its weights.
    if all(_is_in(field, RECIPE) for field in changed):
        remedy += f'; --config.resume_from={workdir} continues there from its state'
    elif not any(_is_in(field, SHAPES) for field in changed):
        remedy += f'; --config.init_from={workdir} starts there from its weights'
    listed = '; '.join(f'{field} was {before.get(field)}, now {after.get(field)}' for field in changed)
    raise UserError(f'{workdir} holds a run of another config ({listed}): {remedy}')


def is_resumable(field: str) -> bool:
    """Return whether a continued run may change the field."""
    return _is_in(field, RESUMABLE)


def _is_in(field: str, fields: tuple[str, ...]) -> bool:
    """Return whether the field is one of these, or of one of these groups."""
    # The dot keeps `epochs` from matching a field that only begins like it.
    return any(field == f or field.startswith(f'{f}.') for f in fields)
