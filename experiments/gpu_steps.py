"""Say what is worth measuring on a borrowed GPU, the most important first, and each step in miniature."""

from typing import NamedTuple


class Step(NamedTuple):
    """Hold commands of this repository, joined by ' && ', and why they are worth the time.

    {workdir} stands for the folder of runs, {seconds} for those that are left to the step.
    """

    why: str
    command: str
    small: str  # the same in miniature, on a CPU
    data: str = ''  # the data set that it cannot do without
    least: int = 30  # seconds that it is worth to begin with
    most: int = 600  # seconds after which it is asked to leave


TRAIN = 'jaxcifar.main --workdir {workdir}/'
# What makes a long training on a GPU fast; it saves, too, when it is asked to leave.
FAST = (
    ' --config.precision=bfloat16 --config.data.loader=device --config.checkpoint.every_epochs=10'
    ' --config.compile_cache={workdir}/compiled --config.log.tensorboard=False --config.log.pictures=False'
)
SMALL = (
    ' --config.network=resnet8 --config.epochs=1 --config.batch_size=20 --config.devices=1'
    ' --config.data.loader=device --config.log.tensorboard=False --config.log.pictures=False'
)
TORCH = ','.join(f'torch {how} channels_last bf16' for how in ('graph', 'compile graph', 'max-autotune'))
STEPS = {
    'smoke': Step(
        'the whole program works here: device loader, transfer guard, trace',
        f'{TRAIN}smoke --config configs/quickstart.py{FAST} --config.epochs=2 --config.profile.steps=10,14',
        f'{TRAIN}smoke --config configs/quickstart.py{SMALL} --config.members=1 --config.data.image_size=8'
        ' --config.batch_size=200 --config.profile.steps=2,3',
        most=150,
    ),
    'beside_pytorch': Step(
        "our step beside PyTorch's best: whole-step CUDA graphs, max-autotune, bfloat16",
        'experiments.bench resnet18 wideresnet28_10 resnet32 --batch 128 --passes 1 --budget {seconds}'
        f' --ways "ours bf16,ours 16 a call bf16,{TORCH}"',
        'experiments.bench resnet8 --batch 4 --budget {seconds} --ways ours,torch --rounds 2 --seconds .05',
        least=60,
        most=330,
    ),
    'members': Step(
        'what K = 4 members cost where one leaves gaps',
        'experiments.bench.members resnet32 64 32 5 1,4',
        'experiments.bench.members resnet8 4 8 1 1',
        least=60,
        most=150,
    ),
    'speedrun': Step(
        'CIFAR-10 to 94 %: seconds and accuracy of three seeds',
        'experiments.speedrun 94 3 {workdir}/speedrun',
        'experiments.speedrun 90 1 {workdir}/speedrun --config.epochs=1 --config.batch_size=20'
        ' --config.schedule.warmup_steps=1 --config.devices=1',
        data='cifar10',
        least=45,
        most=200,
    ),
    'long_tail': Step(
        'ResNet-32 on the balanced test set of CIFAR-100-LT, three losses',
        f'{TRAIN}long_tail --config configs/long_tail.py:standard{FAST}'
        ' && experiments.record {workdir}/long_tail',
        f'{TRAIN}long_tail --config configs/long_tail.py:standard{SMALL} --config.members=1'
        ' --config.loss=balanced_softmax --config.long_tail.imbalance=2'
        ' && experiments.record {workdir}/long_tail',
        data='cifar100',
    ),
    'mutual': Step(
        'mutual learning of four ResNet-32 on all of CIFAR-100, last epoch',
        f'{TRAIN}mutual --config configs/mutual.py{FAST} --config.data.validation=none'
        ' && experiments.record {workdir}/mutual',
        f'{TRAIN}mutual --config configs/mutual.py{SMALL} --config.members=2 --config.data.validation=none'
        ' && experiments.record {workdir}/mutual',
        data='cifar100',
    ),
    'ternary': Step(
        'ternary ResNet-18 on CIFAR-10',
        f'{TRAIN}ternary --config configs/ternary.py:resnet18,cifar10,twn{FAST}'
        ' && experiments.record {workdir}/ternary',
        f'{TRAIN}ternary --config configs/ternary.py:resnet18,cifar10,twn{SMALL}'
        ' --config.data.validation_size=20'
        ' && experiments.record {workdir}/ternary',
        data='cifar10',
    ),
    'options': Step(
        'which options of the compiler small steps want',
        'experiments.bench.options resnet32 64',
        'experiments.bench.options resnet8 4 1 "default again"',
        least=60,
    ),
}
