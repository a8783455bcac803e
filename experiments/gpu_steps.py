"""List what is worth measuring on a borrowed GPU, most important first, and each step in miniature."""

from typing import NamedTuple

from experiments import ternary_table


class Step(NamedTuple):
    """Hold commands of this repository, joined by ' && ', and why they are worth the time.

    {workdir} stands for the folder of runs, {seconds} for those that are left to the step.
    """

    why: str
    command: str
    small: str  # the same in miniature, on a CPU
    data: str = ''  # the data set that it needs
    least: int = 30  # seconds that must be left for it to be worth starting
    most: int = 600  # seconds after which it is asked to stop
    flags: str = ''  # XLA_FLAGS of the command


TRAIN = 'jaxcifar.main --workdir {workdir}/'
# What makes a long training on a GPU fast; it saves, too, when it is asked to leave.
FAST = (
    ' --config.precision=bfloat16 --config.data.loader=device --config.checkpoint.every_epochs=10'
    ' --config.checkpoint.keep=1 --config.compile_cache={workdir}/compiled'
    ' --config.log.tensorboard=False --config.log.pictures=False'
)
# Steps of a call that divide an epoch's whole batches, so that fewer programs are compiled.
IN_CALLS = ' --config.steps_per_call={}'
SMALL = (
    ' --config.network=resnet8 --config.epochs=1 --config.batch_size=20 --config.devices=1'
    ' --config.data.loader=device --config.log.tensorboard=False --config.log.pictures=False'
)
TORCH = 'torch compile graph channels_last bf16'  # the fastest of all that were timed
RECORDED = 'ours recorded 1 a call bf16'  # the whole step as one CUDA graph, as PyTorch's
AUTOTUNED = 'torch max-autotune channels_last bf16'  # takes minutes to compile
WIDE = 'resnet18 wideresnet28_10 --batch 128'
BENCH = 'experiments.bench resnet8 --batch 4 --budget {seconds} --ways ours,torch --rounds 2 --seconds .05'
# In this order. A variant that loses the device ends the series.
OPTIONS = ';'.join(
    ('32 steps a call', 'convolutions recorded', 'convolutions in fusions', '1 step a call, all recorded',
     'all recorded, unrolled', 'all recorded')
)  # fmt: skip
FROM_MEAN = {'scale_start': 0.0, 'scale_lr': 0.01, 'scale_decay': 0.0}  # of TTQ's scales
TABLE = 'experiments.run experiments/{name}.py{word} --workdir {{workdir}}/{folder}'


def ttq(speed: str, folder: str = 'ttq', **more: float) -> str:
    """Return the command of the ternary table's TTQ, which begins from the floats that are kept.

    more: fields of `config.ternary` beside it.
    """
    *_, run = ternary_table.resnet20().runs
    changes = {**run.changes, 'init_from': 'experiments/kept/resnet20-fp32'}
    changes |= {f'ternary.{name}': value for name, value in more.items()}
    fields = ' '.join(f'--config.{name}={value}' for name, value in changes.items())
    train = f'{TRAIN}{folder} --config {run.config} {fields}{speed}'
    return f'{train} && experiments.record {{workdir}}/{folder}'


def table(name: str, folder: str, word: str = '', changes: str = FAST) -> str:
    """Return the command of a table of trainings. Two at a time took as long as one after the other."""
    return TABLE.format(name=name, word=word, folder=folder) + changes


STEPS = {
    'smoke': Step(
        'the whole program works here: device loader, transfer guard, trace',
        f'{TRAIN}smoke --config configs/quickstart.py{FAST} --config.epochs=2 --config.profile.steps=28,36',
        f'{TRAIN}smoke --config configs/quickstart.py{SMALL} --config.members=1 --config.data.image_size=8'
        ' --config.batch_size=200 --config.profile.steps=2,3',
        most=150,
    ),
    'options': Step(
        'which options of the compiler small steps want',
        f'experiments.bench.options resnet32 64 5 "{OPTIONS}"',
        'experiments.bench.options resnet8 4 1 "default again"',
        least=60,
        most=200,
    ),
    'narrow': Step(
        "our step of ResNet-32 at 64 beside PyTorch's best: whole-step CUDA graphs, bfloat16",
        'experiments.bench resnet32 --batch 64 --passes 1 --budget {seconds}'
        f' --ways "ours bf16,{TORCH},{RECORDED}"',
        BENCH,
        least=60,
        most=200,
    ),
    'speedrun': Step(
        'CIFAR-10 to 94 %: seconds and accuracy of six seeds',
        'experiments.speedrun 94 6 {workdir}/speedrun',
        'experiments.speedrun 90 1 {workdir}/speedrun --config.epochs=1 --config.batch_size=20'
        ' --config.schedule.warmup_steps=1 --config.devices=1',
        data='cifar10',
        least=45,
        most=200,
    ),
    'wide': Step(
        'the same of ResNet-18 and WRN-28-10 at 128',
        # The recorded form comes last: it may take long to build.
        f'experiments.bench {WIDE} --passes 1 --budget {{seconds}} --ways "ours bf16,{TORCH}"'
        f' && experiments.bench {WIDE} --passes 1 --budget {{seconds}} --ways "{RECORDED}"',
        BENCH.replace('--batch 4', '--batch 5'),
        least=60,
        most=300,
    ),
    'ternary': Step(
        'TTQ of ResNet-20 on CIFAR-10 from the trained floats that are kept, three seeds',
        ttq(f'{FAST}{IN_CALLS.format(15)}'),  # of 391 steps an epoch
        ttq(f'{SMALL} --config.network=resnet20'),
        data='cifar10',
    ),
    'members': Step(
        'what K = 4 members cost where one leaves gaps',
        'experiments.bench.members resnet32 64 32 5 1,4',
        'experiments.bench.members resnet8 4 8 1 1',
        least=60,
        most=240,
    ),
    'long_tail': Step(
        "ResNet-32 on CIFAR-100-LT by OpenLT's recipe, two losses, three seeds",
        table('long_tail_table', 'long_tail', ':steps', f'{FAST}{IN_CALLS.format(14)}'),  # of 85 steps
        table('long_tail_table', 'long_tail', ':steps', f'{SMALL} --config.members=1 --config.seed=1')
        + ' --config.schedule.warmup_steps=1 --config.long_tail.imbalance=2',
        data='cifar100',
    ),
    'resume': Step(
        'a run that is killed ends bit for bit as an undisturbed one, by deterministic operations',
        'experiments.soak 6 0 1.5',
        'experiments.soak 1 0 1',
        least=180,
        most=240,
        flags='--xla_gpu_deterministic_ops=true',
    ),
    'speedrun_96': Step(
        'CIFAR-10 to 96 %',
        'experiments.speedrun 96 3 {workdir}/speedrun',
        'experiments.speedrun 96 1 {workdir}/speedrun --config.epochs=1 --config.batch_size=20'
        ' --config.precision=float32 --config.devices=1 --config.network=speednet_small',
        data='cifar10',
        least=60,
    ),
    'ternary_mean': Step(
        "the same where the scales begin at the weights' mean: what their beginning is worth",
        ttq(f'{FAST}{IN_CALLS.format(15)}', 'ttq_mean', **FROM_MEAN),
        ttq(f'{SMALL} --config.network=resnet20', 'ttq_mean', **FROM_MEAN),
        data='cifar10',
    ),
    'mutual': Step(
        'mutual learning of four ResNet-32 on all of CIFAR-100, last epoch',
        f'{TRAIN}mutual --config configs/mutual.py{FAST}{IN_CALLS.format(11)} --config.data.validation=none'
        ' && experiments.record {workdir}/mutual',
        f'{TRAIN}mutual --config configs/mutual.py{SMALL} --config.members=2 --config.data.validation=none'
        ' && experiments.record {workdir}/mutual',
        data='cifar100',
        least=400,  # 200 epochs of 781 steps
    ),
    'autotuned': Step(
        "PyTorch's max-autotune beside our step",
        'experiments.bench resnet18 --batch 128 --passes 1 --budget {seconds}'
        f' --ways "ours bf16,{AUTOTUNED}"',
        BENCH.replace('--batch 4', '--batch 6'),
        least=200,
    ),
}
