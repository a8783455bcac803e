"""Declare every field of a run with its default. Experiments start from here and change what they need.

Each line declares a field: its default, what else it may be, and in a comment what it is for.
A field marked [K] takes one number, or one number per member: --config.optimizer.lr=.1,.2
A field marked [auto] is filled in after the command line, from the fields it depends on.
A field marked [resumable] may change between a run and its continuation; the others may not.
"""

from ml_collections import ConfigDict

from jaxcifar.config.values import (
    INTEGER,
    SEED,
    Field,
    Group,
    declared,
    each,
    flatten,
    get,
    one_of,
    real,
    text,
    whole,
    wholes,
)
from jaxcifar.machine.errors import UserError, unknown
from jaxcifar.machine.text import show

FLOAT_ENDS = '^(?!conv1/|features_conv0/|features_0_0/|fc/|classifier)'  # all but stem and classifier


def get_config() -> ConfigDict:
    """Return the configuration that all the others are made from."""
    c = ConfigDict()
    for name, field in FIELDS.items():
        group, _, leaf = name.rpartition('.')
        if group and group not in c:
            c[group] = ConfigDict()
        (c[group] if group else c)[leaf] = field.initial()
    return c


def check_values(config: ConfigDict):
    """Raise `UserError` unless a config has every field and no other, each with a valid value."""
    values = flatten(config)
    for name in values.keys() - FIELDS.keys():
        for known, field in FIELDS.items():
            if known.startswith(f'{name}.'):
                raise UserError(f'{name} must be a group of fields, as {known}, got {show(values[name])}')
            if name.startswith(f'{known}.'):
                field.check(known, get(config, known))
        raise unknown('field', name, FIELDS)
    for name, field in FIELDS.items():
        if name not in values:
            raise UserError(f'the config has no field {name}; begin with configs.base.get_config()')
        filled_in = field.default is None or field.shape == 'member'  # or refused later by `per_member`
        if values[name] is not None or not filled_in:
            field.check(name, values[name])


def number_or_list(default: float):
    """Return the value of a new field that takes one number, or one number per member."""
    return each(default).initial()


def _declare() -> Group:
    """Return every field in its group. A number's range is low, high; without them, from 0 up."""
    c = Group()
    _population(c)
    _networks(c)
    _images(c)
    _training(c)
    _records(c)
    return c


def _population(c: Group):
    """Declare what is trained on what: the four choices and their numbers."""
    c.dataset = 'cifar10'  # digits | cifar10 | cifar100 | npz:FILE | folder:… | imagenet:… | stream:FOLDER
    c.network = 'resnet20'  # a name of jaxcifar.models; resnet20+resnet8 is one member of each
    c.members = whole(None, 1, 10_000)  # K, the number of networks [auto: one per name or part of the split]
    c.member_ids = wholes(None)  # train only these members of a larger population [auto: 0,1,…,K-1]
    c.split = 'shared'  # images of each: shared | overlap | disjoint | fusion | file | long_tail[_standard]
    c.loss = 'cross_entropy'  # cross_entropy | logit_adjustment | balanced_softmax; a+b is one of each
    c.coupling = 'none'  # how members influence each other: none | mutual | fusion
    c.update_order = one_of('simultaneous', 'sequential')  # all from one forward pass, or in turns
    c.view = 'none'  # how the forward pass sees the weights: none | ternary; a+b is one of each
    c.seed = each(0, 0, SEED)  # of data order and augmentation; with a member's id also of its weights [K]
    c.devices = whole(None, 1)  # number of devices to use [auto: all] [resumable]
    c.sync_norm = True  # batch statistics over all devices of a member (False: over each device alone)
    c.epochs = whole(100, 1, 1_000_000)  # passes over the training images [resumable]
    c.batch_size = whole(128, 1)  # images a step, over all devices
    c.precision = one_of('float32', 'bfloat16')  # compute type; parameters stay float32
    c.label_smoothing = each(0.0, 0, 1)  # ε in (1-ε)·onehot + ε/C [K]
    c.tau = each(1.0)  # τ of logit_adjustment, the cross entropy of z + τ·log π [K]
    c.ema = real(0.0, 0, 1)  # decay of a moving average of weights, which is then evaluated; 0 is off
    c.augment = text(None)  # augmentations or a preset [auto: crop(4)+flip; none for streams]
    c.augment_each = False  # augment a shared batch independently for each member


def _networks(c: Group):
    """Declare what members are made of, and what couplings and views add."""
    c.model = Group()
    c.model.dropout = real(0.0, 0, 0.99)  # share of a block's hidden activations set to zero in training
    c.model.drop_path = real(0.0, 0, 0.99)  # stochastic depth: probability of skipping the last block
    c.model.init = 'he'  # he | he_dense | torch | dirac: the distributions that weights are drawn from
    c.model.zero_init = False  # the last norm of each block starts at 0, so that blocks start as the identity
    c.model.norm_momentum = real(0.9, 0, 1)  # weight of the old value in batch norm's running statistics
    c.model.whitening = ''  # speednet: bias trains a bias after the whitening filters [auto: none]
    c.model.shortcut = ''  # A | B, for resnet8 to resnet110 and others with a choice [auto: their own]
    c.model.stem = ''  # cifar | imagenet, for images of 32 or 224 pixels [auto: cifar]

    c.mutual = Group()
    c.mutual.temperature = real(1.0, 0.01)  # T of the softmax that members compare; T² scales the divergence

    c.fusion = Group()
    c.fusion.rule = 'multiplicative'  # multiplicativeAddition | TransformerBase | concatenation are others
    c.fusion.alpha = real(1.0)  # the loss is the fused prediction's plus α times the sum of the members'
    c.fusion.residual = False  # the global head starts at 0 and corrects the mean of the members' logits
    c.fusion.dropout = real(0.2, 0, 0.99)  # dropout in the fusion module
    c.fusion.heads = whole(8, 1)  # attention heads of TransformerBase
    c.fusion.lr = real(None)  # of the fusion module [auto: by rule and features; optimizer.lr likewise]
    c.fusion.lr_head = real(None)  # learning rate of the global head [auto: fusion.lr]
    c.fusion.weight_decay = real(1e-4)  # of module and head; name, momentum and decay are as in optimizer
    c.fusion.clip = real(1.0)  # largest gradient norm of module and head together; 0 is off
    c.fusion.clip_all = real(0.0)  # … of module, head and all members, applied first; 0 is off
    c.fusion.schedule = 'cosine'  # of module and head: as schedule.name, with the other fields of schedule
    c.fusion.freeze_epochs = whole(0)  # epochs at the start with frozen members, batch statistics included

    c.ternary = Group()
    c.ternary.rule = 'twn'  # twn: threshold and scale from the weights; ttq: two learned scales
    c.ternary.per = 'tensor'  # tensor | channel: thresholds and scales per kernel, or per output channel
    c.ternary.scale = True  # twn: use a scale; without it, weights are -1, 0 and 1
    c.ternary.layers = FLOAT_ENDS  # regular expression for the paths of ternary kernels; .* is all
    c.ternary.scale_start = real(1.0, 0)  # ttq: initial scales; 0: the mean of kept weights at the start
    c.ternary.scale_lr = real(1.0)  # ttq: learning rate of the scales, as a share of lr
    c.ternary.scale_decay = real(1.0)  # ttq: weight decay of the scales, as a share of weight_decay
    c.ternary.float_epochs = real(0.0)  # epochs at the start that train the floats alone
    c.ternary.blend_epochs = real(0.0)  # … and epochs after those that blend gradually from floats to ternary


def _images(c: Group):
    """Declare where images come from and who sees them."""
    c.data = Group()
    c.data.root = text(None)  # where datasets are kept [auto: $JAXCIFAR_DATA or data] [resumable]
    c.data.loader = one_of('host', 'device')  # a PyTorch DataLoader, or images in device memory [resumable]
    c.data.validation = 'holdout'  # holdout, fusion_holdout, fusion_validation, file, val_lt, test, none
    c.data.validation_size = real(0.1, 0, INTEGER)  # images of holdout without a val/ folder: share or number
    c.data.split_seed = whole(0, 0, SEED)  # seed of the held-out images; separate so that runs are comparable
    c.data.order = one_of('shared', 'member')  # members see the same batches, or each its own
    c.data.drop_last = False  # leave out an epoch's last, shorter batch
    c.data.image_size = whole(None, 1, 4096)  # pixels of digits, image files [auto: 224 for imagenet, or 32]
    c.data.workers = whole(0, 0, 512)  # processes that read batches; one a core for image files [resumable]

    c.experts = Group()
    c.experts.count = whole(4, 1, 10_000)  # number of experts in split=overlap and split=disjoint
    c.experts.seed = whole(42, 0, SEED)  # seed of all the parts below
    c.experts.holdout = real(0.2, 0, INTEGER)  # fusion holdout, which no expert sees: share or number
    c.experts.validation = real(0.1, 0, INTEGER)  # part of it that fusion does not train on: share or number
    c.experts.shared = real(0.4, 0, 1)  # overlap: share of the rest, the pool, that all experts see
    c.experts.unique = real(0.15, 0, 1)  # overlap: share of the pool that each expert sees alone

    c.files = Group()
    c.files.train = ''  # split=file: FILE, or one per member: FILE,FILE; .npy, .json or .txt [resumable]
    c.files.validation = ''  # data.validation=file: indices in the training images [resumable]

    c.long_tail = Group()
    c.long_tail.imbalance = real(100.0, 1)  # size of the largest class divided by the smallest
    c.long_tail.seed = whole(42, 0, SEED)  # seed of the images and their parts


def _training(c: Group):
    """Declare how parameters and learning rates move."""
    c.optimizer = Group()
    c.optimizer.name = 'sgd'  # sgd | adamw | muon (for convolutions, with sgd for the rest)
    c.optimizer.lr = each(0.1)  # learning rate, which the schedule multiplies by its factor [K]
    c.optimizer.momentum = real(0.9, 0, 1)  # momentum of sgd and muon
    c.optimizer.nesterov = True  # Nesterov momentum, for sgd and muon
    c.optimizer.b1 = real(0.9, 0, 0.999999)  # β1 of adamw
    c.optimizer.b2 = real(0.999, 0, 0.999999)  # β2 of adamw
    c.optimizer.rest = real(0.1)  # muon: learning rate of all but convolutions, as a share of lr
    c.optimizer.rest_momentum = real(None, 0, 1)  # muon: momentum of all but convolutions [auto: momentum]
    c.optimizer.rescale = False  # muon: scale each kernel to the norm √(its outputs) before its update
    c.optimizer.rates = ''  # factors of lr by parameter path: 'fc/=2 bias=64 scale=0'; the first match counts
    c.optimizer.weight_decay = each(5e-4)  # sgd: added to the gradient; adamw: decoupled [K]
    c.optimizer.decay = '.*'  # paths of parameters that decay ('kernel': no norms); factors as in rates
    c.optimizer.clip = real(0.0)  # clip each member's gradient to this norm; 0 is off
    c.optimizer.accumulate = whole(1, 1)  # process each batch in this many equal parts

    c.schedule = Group()
    c.schedule.name = 'cosine'  # cosine | warm_restarts | multistep | step | linear | constant
    c.schedule.per = one_of('step', 'epoch')  # the learning rate moves every step, or every epoch
    c.schedule.warmup_steps = whole(0)  # the factor is multiplied by min(1, (step+1)/warmup_steps)
    c.schedule.final = real(0.0, 0, 1)  # cosine, warm_restarts, linear: lowest learning rate as a share of lr
    c.schedule.period = whole(10, 0, 1_000_000)  # warm_restarts: epochs of the first cycle; 0: 1/4 of all
    c.schedule.multiplier = whole(2, 1, 1000)  # warm_restarts: each cycle is this many times the one before
    c.schedule.milestones = wholes((60, 120, 160))  # multistep: epochs at which lr is multiplied by gamma
    c.schedule.step_size = whole(30, 1)  # step: every this many epochs lr is multiplied by gamma
    c.schedule.gamma = real(0.1)  # multistep, step: the factor

    c.early_stopping = Group()
    c.early_stopping.patience = whole(0)  # evaluations without a new best before a stop; 0: off [resumable]
    c.early_stopping.min_epochs = whole(0)  # patience counts only after this epoch [resumable]


def _records(c: Group):
    """Declare what is evaluated, saved and logged, and how a run begins."""
    c.eval = Group()
    c.eval.every_epochs = whole(1, 1)  # how often the validation images are evaluated
    c.eval.batch_size = whole(500, 1)  # images a step in evaluation [resumable]
    c.eval.flip = False  # average the logits of an image and its mirror image
    c.eval.shift = whole(0, 0, 64)  # … also of two diagonal shifts by so many pixels, with half the weight

    c.checkpoint = Group()
    c.checkpoint.every_epochs = whole(1, 1)  # how often the whole state is saved [resumable]
    c.checkpoint.every_steps = whole(0)  # … and within an epoch; 0 is off [resumable]
    c.checkpoint.keep = whole(2, 1)  # newest checkpoints to keep; with 1 there is no fallback [resumable]

    c.log = Group()
    c.log.every_steps = whole(0)  # steps between rows of metrics within an epoch; 0 is off [resumable]
    c.log.tensorboard = True  # event files in WORKDIR/tensorboard [resumable]
    c.log.pictures = True  # curves, confusions and mistakes in WORKDIR/pictures at the end [resumable]
    c.log.wandb = one_of('disabled', 'offline', 'online')  # whether to log to Weights & Biases [resumable]
    c.log.wandb_project = 'jaxcifar'  # [resumable]
    c.log.wandb_group = ''  # groups the sessions of a run, or several runs [resumable] [auto: as wandb_name]
    c.log.wandb_name = ''  # [resumable] [auto: the workdir's name]

    c.profile = Group()
    c.profile.steps = wholes((0, 0), 'pair')  # trace the steps from the first up to the second [resumable]

    c.init_from = ''  # start from weights of RUN, RUN@last, resnet20-ternary, EXPORT or FILE; a+b: in turn
    c.resume_from = ''  # start a new workdir from another run's checkpoint: WORKDIR or WORKDIR@STEP
    c.members_as = 'auto'  # members run as loop (in turn) | one (side by side), dense, grouped [resumable]
    c.steps_per_call = whole(None, 1, 100_000)  # training steps a call [auto: 1 to 16 on GPUs] [resumable]
    c.compile_cache = ''  # folder in which XLA keeps compiled programs for the next run [resumable]


FIELDS: dict[str, Field] = declared(_declare())
PER_MEMBER = tuple(name for name, field in FIELDS.items() if field.shape == 'member')
