"""Configs as a workdir keeps them: to JSON and back, and what a continued run may change."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from jaxcifar.config.fields import get_config
from jaxcifar.config.values import flatten
from jaxcifar.machine.errors import UserError

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


def to_dict(config: ConfigDict) -> dict:
    """Plain nested dict, as JSON would give it back."""
    return json.loads(config.to_json_best_effort())


def from_dict(fields: dict) -> ConfigDict:
    """A config from what `to_dict` made of it; fields that are newer than that have their defaults."""
    merged = _merge(to_dict(get_config()), fields)
    return ConfigDict(json.loads(json.dumps(merged), object_hook=_tuples))


def _merge(defaults: dict, fields: dict) -> dict:
    groups = {k: _merge(v, fields.get(k, {})) for k, v in defaults.items() if isinstance(v, dict)}
    return {**defaults, **fields, **groups}


def load(path: Path) -> ConfigDict:
    """A resolved config from a workdir's config.json."""
    try:
        return from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f'{path.parent} is not a workdir: it has no {path.name}') from None
    except ValueError as error:
        raise UserError(f'{path} is damaged: {error}') from None


def _tuples(node: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in node.items()}


def refuse_changes(old: ConfigDict, new: ConfigDict, workdir: Path):
    """Raise `UserError` where a field that is not resumable differs."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    changed = [
        f'{field} was {before.get(field)}, now {after.get(field)}'
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field) and not is_resumable(field)
    ]
    if changed:
        raise UserError(
            f'{workdir} holds a run of another config ({"; ".join(changed)}): '
            f'choose a new --workdir; --config.resume_from={workdir} goes on there from its state'
        )


def is_resumable(field: str) -> bool:
    """Whether a continued run may change the field."""
    return any(field == f or field.startswith(f'{f}.') for f in RESUMABLE)
