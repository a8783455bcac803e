"""Translate flags of the programs that trained these networks before into fields of this one."""

import re
import shlex
from typing import NamedTuple

from jaxcifar.machine.errors import OTHERS_CALL_IT, UserError

# flag -> what is written instead; {} is its value.
FLAGS = {
    'model': '--config.network={}',
    'models': '--config.network={}',
    'dataset': '--config.dataset={}',
    'epochs': '--config.epochs={}',
    'batch_size': '--config.batch_size={}',
    'lr': '--config.optimizer.lr={}',
    'learning_rate': '--config.optimizer.lr={}',
    'momentum': '--config.optimizer.momentum={}',
    'wd': '--config.optimizer.weight_decay={}',
    'weight_decay': '--config.optimizer.weight_decay={}',
    'scheduler': '--config.schedule.name={}',
    'step_size': '--config.schedule.step_size={}',
    'gamma': '--config.schedule.gamma={}',
    'warmup_steps': '--config.schedule.warmup_steps={}',
    'drop_rate': '--config.model.dropout={}',
    'label_smoothing': '--config.label_smoothing={}',
    'expert_id': '--config.member_ids={}',
    'num_nodes': '--config.members={}',
    'fusion_type': '--config.fusion.rule={}',
    'seed': '--config.seed={}',
    'workers': '--config.data.workers={}',
    'early_stopping': '--config.early_stopping.patience=40',
    'early_stopping_patience': '--config.early_stopping.patience={}',
    'validation_every': '--config.eval.every_epochs={}',
    'save_freq': '--config.checkpoint.every_epochs={}',
    'log_interval': '--config.log.every_steps={}',
    'checkpoint_dir': '--workdir={}',
}
# Flags of augmentation are parts of one field, in this order.
AUGMENTATIONS = {
    'autoaugment': 'auto_augment',
    'randaugment': 'randaugment(2,9)',
    'cutmix': 'cutmix(1.0,.5)',
    'cutmix_alpha': 'cutmix({},.5)',
    'mixup': 'mixup(1.0,.5)',
    'mixup_alpha': 'mixup({},.5)',
}
# What needs no flag here, and why.
NEEDLESS = {
    'no_wandb': 'log.wandb is disabled by default',
    'csv_log': 'WORKDIR/metrics.csv always has these numbers',
    'log_dir': 'event files are always in WORKDIR/tensorboard',
    'resume': 'the same command with the same --workdir resumes; --config.resume_from=WORKDIR continues from '
    "another run's state, --config.init_from=FILE starts from weights alone",
}
VALUES = {'none': 'constant', 'imagenet': 'imagenet:FOLDER'}


class Answer(NamedTuple):
    """Hold the old flags of a command line, and what to write instead."""

    old: list[str]  # the flags and their values
    words: dict[str, str]  # field -> --config.FIELD=VALUE
    needless: dict[str, str]  # flag -> why it can be left out


def translated(arguments: list[str]) -> UserError | None:
    """Return the error that translates old flags and their values, or None if there are none."""
    old, words, needless = _answer(arguments)
    answers = [f'write {shlex.join(words.values())} for {shlex.join(old)}'] if words else []
    answers += [f'leave out {flag}: {why}' for flag, why in needless.items()]
    if not answers:
        return None
    return UserError(f'expected flags of jaxcifar, got those of another program: {"; ".join(answers)}')


def _answer(arguments: list[str]) -> Answer:
    """Return the translation of the old flags among the words of a command line."""
    old, words, augment, needless = [], dict[str, str](), dict[str, str](), dict[str, str]()
    for flag, values in _flags(arguments):
        name = flag.replace('-', '_')
        # Several values of one flag were several networks.
        value = '+'.join(VALUES.get(v, OTHERS_CALL_IT.get(re.sub('[-_]', '', v.lower()), v)) for v in values)
        if name in NEEDLESS:
            needless[f'--{flag}'] = NEEDLESS[name]
        elif name in AUGMENTATIONS:
            # A strength counts whether it comes before or after the flag that turns the augmentation on.
            kind = name.removesuffix('_alpha')
            if kind not in augment or kind != name:
                augment[kind] = AUGMENTATIONS[name].format(value or '1.0')
        elif name in FLAGS:
            field, _, new = FLAGS[name].format(value or 'VALUE').partition('=')
            # A switch without a value must not undo the number that another flag gave.
            if field not in words or value:
                # A switch there may be given a number, which is then meant.
                words[field] = f'{field}={value if value.isdecimal() and "{}" not in FLAGS[name] else new}'
        else:
            continue
        old += [] if name in NEEDLESS else [f'--{flag}', *values]
    if augment:
        terms = [augment[kind] for kind in AUGMENTATIONS if kind in augment]
        words['augment'] = f'--config.augment={"+".join(["crop(4)", "flip", *terms])}'
    return Answer(old, words, needless)


def is_old(flag: str) -> bool:
    """Return whether a flag belongs to one of the earlier programs."""
    return flag.replace('-', '_') in FLAGS.keys() | AUGMENTATIONS.keys() | NEEDLESS.keys()


def table() -> list[str]:
    """Return every old flag and its answer, and every old name, as the rows of a table in Markdown."""
    rows = []
    for name in [*FLAGS, *AUGMENTATIONS, *NEEDLESS]:
        flag = '--num-nodes' if name == 'num_nodes' else f'--{name}'
        # A flag takes a value where its answer has one; X stands for it.
        takes = '{}' in FLAGS.get(name, AUGMENTATIONS.get(name, ''))
        answer = _answer([flag, 'X'] if takes else [flag])
        here = ' '.join(f'`{word}`' for word in answer.words.values())
        here = here or f'leave it out: {answer.needless[flag]}'
        rows.append(f'| `{flag}{" X" if takes else ""}` | {here} |')
    # Names are compared without the separators in them, so any spelling works.
    rows += [f'| the name `{there}` | `{here}` |' for there, here in {**OTHERS_CALL_IT, **VALUES}.items()]
    return ['| there | here |', '|---|---|', *rows]


def _flags(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Return the flags of a command line, without --, and their values, given after = or as further words."""
    flags: list[tuple[str, list[str]]] = []
    for word in arguments:
        if word.startswith('--'):
            name, equals, value = word.removeprefix('--').partition('=')
            flags.append((name, [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
    return flags
