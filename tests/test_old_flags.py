"""Flags of the programs before: each is answered with what is written here, and that works."""

import re
import shlex

import pytest

from jaxcifar.config.command_line import parse
from jaxcifar.config.old_flags import AUGMENTATIONS, FLAGS, NEEDLESS, table
from jaxcifar.config.short_form import spell_out
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize
from tests.pages import page

START = ['main', '--config', 'configs/single.py', '--workdir', 'x']
# A command of each of the programs, and what replaces its flags.
COMMANDS = {
    '--model preact_resnext29_8x64d --expert_id 0': '--config.network=preact_resnext29_8x64d '
    '--config.member_ids=0',
    '--model wideresnet40_2 --epochs 150 --batch_size 256 --lr 0.05': '--config.network=wideresnet40_2 '
    '--config.epochs=150 --config.batch_size=256 --config.optimizer.lr=0.05',
    '--fusion_type TransformerBase': '--config.fusion.rule=TransformerBase',
    '--models resnet32 --num-nodes 3 --lr 0.1 --wd 5e-4 --seed 42': '--config.network=resnet32 '
    '--config.members=3 --config.optimizer.lr=0.1 --config.optimizer.weight_decay=5e-4 --config.seed=42',
    '--models resnet32 wrn28_2': '--config.network=resnet32+wideresnet28_2',
    '--model improved_wideresnet28_10 --dataset cifar10': '--config.network=wideresnet28_10 '
    '--config.dataset=cifar10',
    '--model=densenet --momentum .8': '--config.network=densenet121 --config.optimizer.momentum=.8',
    '--dataset imagenet --scheduler none': '--config.dataset=imagenet:FOLDER --config.schedule.name=constant',
    '--scheduler step --step_size 150 --gamma 0.1': '--config.schedule.name=step '
    '--config.schedule.step_size=150 --config.schedule.gamma=0.1',
    '--label_smoothing 0.1 --cutmix --cutmix_alpha 0.8 --weight_decay 1e-3': '--config.label_smoothing=0.1 '
    '--config.optimizer.weight_decay=1e-3 --config.augment=crop(4)+flip+cutmix(0.8,.5)',
    '--mixup_alpha 0.4 --mixup --cutmix': '--config.augment=crop(4)+flip+cutmix(1.0,.5)+mixup(0.4,.5)',
    '--randaugment': '--config.augment=crop(4)+flip+randaugment(2,9)',
    '--autoaugment': '--config.augment=crop(4)+flip+auto_augment',
    '--early_stopping': '--config.early_stopping.patience=40',
    '--early_stopping_patience 60 --early_stopping': '--config.early_stopping.patience=60',
    '--save_freq 10 --log_interval 100 --workers 4': '--config.checkpoint.every_epochs=10 '
    '--config.log.every_steps=100 --config.data.workers=4',
    '--learning_rate .4 --warmup_steps 68 --drop_rate .3 --validation_every 10': '--config.optimizer.lr=.4 '
    '--config.schedule.warmup_steps=68 --config.model.dropout=.3 --config.eval.every_epochs=10',
    '--checkpoint_dir ./checkpoints': '--workdir=./checkpoints',
}


def answer(flags: str) -> str:
    with pytest.raises(UserError) as caught:
        parse([*START, *shlex.split(flags)])
    return str(caught.value)


@pytest.mark.parametrize('flags', COMMANDS)
def test_old_flags_are_spelt_anew(flags):
    said = answer(flags)
    words = re.fullmatch(
        r'expected flags of jaxcifar, got those of another program: write (.*) for (--.*)', said
    )
    assert words is not None and shlex.split(words[1]) == COMMANDS[flags].split()
    assert words[2] == flags.replace('=densenet', ' densenet')
    config, _ = parse([*START, *shlex.split(words[1])])
    finalize(config)


def test_the_page_has_every_old_flag_and_its_answer():
    """The rows are those that `python -c "from jaxcifar.config import old_flags; …table()"` prints."""
    assert '\n'.join(table()) in page('old-flags')


def test_every_old_flag_is_in_a_command():
    flags = set(re.findall(r'--([\w-]+)', ' '.join(COMMANDS)))
    assert {flag.replace('-', '_') for flag in flags} == FLAGS.keys() | AUGMENTATIONS.keys()


@pytest.mark.parametrize(('words', 'answer'), [
    ('single --wd 5e-4', 'write --config.optimizer.weight_decay=5e-4 for --wd 5e-4'),
    ('single --lr .1 --no_wandb', 'leave out --no_wandb'),
    ('single --early_stopping 5', 'write --config.early_stopping.patience=5 for --early_stopping 5'),
    ('ternary --cutmix --epochs 5', r"write --config.epochs=5 '--config.augment=crop\(4\)\+flip\+cutmix"),
])  # fmt: skip
def test_the_short_form_answers_them_too(words, answer):
    with pytest.raises(UserError, match=answer):
        spell_out(words.split())


def test_flags_that_are_short_fields_too_are_fields():
    words = spell_out(['single', '--lr', '.1', '--workers', '2', '--workdir', 'x', '--seed', '3'])
    assert words[:3] == ['--config=single', '--config.optimizer.lr=.1', '--config.data.workers=2']
    assert words[3:] == ['--workdir=x', '--config.seed=3']


@pytest.mark.parametrize('flag', NEEDLESS)
def test_what_needs_no_flag_is_said(flag):
    assert (
        answer(f'--{flag} x.csv')
        == f'expected flags of jaxcifar, got those of another program: leave out --{flag}: {NEEDLESS[flag]}'
    )
    assert answer(f'--lr .1 --{flag}').startswith(
        'expected flags of jaxcifar, got those of another program: write --config.optimizer.lr=.1 for --lr .1'
        '; leave out'
    )
