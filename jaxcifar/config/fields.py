"""Declare every field of a run with its default. Experiments start from here and change what they need.

Each line is a field: its default, in a declaration of what else it may be, and what it is for.
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
    """Raise `UserError` unless a config has every field, no other, and in each a value that it may have."""
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
        filled_in = field.default is None or field.shape == 'member'  # or refused for each member then
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
    c.members = whole(None, 1, 10_000)  # K, networks that are trained together [auto: 1 a name or split]
    c.member_ids = wholes(None)  # train these of a larger population [auto: 0,1,…,K-1]
    c.split = 'shared'  # who sees what: shared | overlap | disjoint | fusion | file | long_tail[_standard]
    c.loss = 'cross_entropy'  # cross_entropy | logit_adjustment | balanced_softmax; a+b is one of each
    c.coupling = 'none'  # what members do to each other: none | mutual | fusion
    c.update_order = one_of('simultaneous', 'sequential')  # all from one forward pass, or in turns
    c.view = 'none'  # what the forward pass sees of the weights: none | ternary; a+b is one of each
    c.seed = each(0, 0, SEED)  # data order and augmentation; with a member's id its init too [K]
    c.devices = whole(None, 1)  # how many of the accelerators to use [auto: all] [resumable]
    c.sync_norm = True  # batch statistics over all devices of a member, or over each device alone
    c.epochs = whole(100, 1, 1_000_000)  # passes over the training images [resumable]
    c.batch_size = whole(128, 1)  # images a step, over all devices
    c.precision = one_of('float32', 'bfloat16')  # of the computation; parameters stay float32
    c.label_smoothing = each(0.0, 0, 1)  # ε in (1-ε)·onehot + ε/C [K]
    c.tau = each(1.0)  # τ of logit_adjustment, the cross entropy of z + τ·log π [K]
    c.ema = real(0.0, 0, 1)  # decay of the average of weights and statistics that is evaluated; 0 is off
    c.augment = text(None)  # names or a preset of data.augment [auto: crop(4)+flip; none of streams]
    c.augment_each = False  # members that share a batch draw its augmentation each for itself


def _networks(c: Group):
    """Declare what members are made of, and what couplings and views add."""
    c.model = Group()
    c.model.dropout = real(0.0, 0, 0.99)  # share of a block's hidden activations set to zero in training
    c.model.drop_path = real(0.0, 0, 0.99)  # stochastic depth: how often the last block is skipped
    c.model.init = 'he'  # he | he_dense | torch | dirac: the distributions that weights are drawn from
    c.model.zero_init = False  # norms that end a block begin at 0, so that blocks begin as nothing
    c.model.norm_momentum = real(0.9, 0, 1)  # share of the old in a step's running statistics of batch norms
    c.model.whitening = ''  # of speednet: bias, to train one behind its filters [auto: without]
    c.model.shortcut = ''  # A | B, of resnet8 to resnet110 and others that have it [auto: their own]
    c.model.stem = ''  # cifar | imagenet, for images of 32 or 224 pixels [auto: cifar]

    c.mutual = Group()
    c.mutual.temperature = real(1.0, 0.01)  # T of the softmax that members compare; T² times their divergence

    c.fusion = Group()
    c.fusion.rule = 'multiplicative'  # multiplicativeAddition | TransformerBase | concatenation are others
    c.fusion.alpha = real(1.0)  # the loss is the fused prediction's plus α times the sum of the members'
    c.fusion.residual = False  # the global head begins at 0, and adds to the mean of the members' logits
    c.fusion.dropout = real(0.2, 0, 0.99)  # within the fusion module
    c.fusion.heads = whole(8, 1)  # of TransformerBase's attention
    c.fusion.lr = real(None)  # of the fusion module [auto: by rule and features; so optimizer.lr]
    c.fusion.lr_head = real(None)  # of the global head [auto: fusion.lr]
    c.fusion.weight_decay = real(1e-4)  # of both; optimizer.name, momentum and decay are the members'
    c.fusion.clip = real(1.0)  # largest norm of the gradient of both; 0 is off
    c.fusion.clip_all = real(0.0)  # … of both and all members together, before their own; 0 is off
    c.fusion.schedule = 'cosine'  # of both: a name of schedule.name, with that one's other fields
    c.fusion.freeze_epochs = whole(0)  # first epochs in which members keep weights and batch statistics

    c.ternary = Group()
    c.ternary.rule = 'twn'  # twn: threshold and scale from the weights; ttq: two learned scales
    c.ternary.per = 'tensor'  # tensor | channel: what has a threshold and scales of its own
    c.ternary.scale = True  # of twn; without, weights are -1, 0 and 1
    c.ternary.layers = FLOAT_ENDS  # regular expression: kernels, by path, that are ternary; .* is all
    c.ternary.scale_start = real(1.0, 0)  # of ttq: the scales begin there; 0: at the mean of kept weights
    c.ternary.scale_lr = real(1.0)  # of ttq: the scales' learning rate for one of lr
    c.ternary.scale_decay = real(1.0)  # of ttq: the scales' weight decay for one of weight_decay
    c.ternary.float_epochs = real(0.0)  # epochs that begin with training the floats
    c.ternary.blend_epochs = real(0.0)  # … and then epochs in which floats turn ternary bit by bit


def _images(c: Group):
    """Declare where images come from and who sees them."""
    c.data = Group()
    c.data.root = text(None)  # where datasets are kept [auto: $JAXCIFAR_DATA or data] [resumable]
    c.data.loader = one_of('host', 'device')  # a PyTorch DataLoader, or all in device memory [resumable]
    c.data.validation = 'holdout'  # holdout, fusion_holdout, fusion_validation, file, val_lt, test, none
    c.data.validation_size = real(0.1, 0, INTEGER)  # of holdout without a val/ folder: share or number
    c.data.split_seed = whole(0, 0, SEED)  # draws the held-out images; apart from seed, so that runs compare
    c.data.order = one_of('shared', 'member')  # members see the same batches, or each its own
    c.data.drop_last = False  # leave out an epoch's last, shorter batch
    c.data.image_size = whole(None, 1, 4096)  # digits and image files get this [auto: 224 of imagenet, or 32]
    c.data.workers = whole(0, 0, 512)  # processes that read batches; of images on disk one a core [resumable]

    c.experts = Group()
    c.experts.count = whole(4, 1, 10_000)  # members that split=overlap and disjoint part the images for
    c.experts.seed = whole(42, 0, SEED)  # draws all of these parts
    c.experts.holdout = real(0.2, 0, INTEGER)  # share or number of images that no expert sees: fusion's
    c.experts.validation = real(0.1, 0, INTEGER)  # share or number of those that fusion does not train on
    c.experts.shared = real(0.4, 0, 1)  # overlap: share of the rest, the pool, that all experts see
    c.experts.unique = real(0.15, 0, 1)  # overlap: share of the pool that each expert sees alone

    c.files = Group()
    c.files.train = ''  # split=file: FILE, or one a member: FILE,FILE; .npy, .json or .txt [resumable]
    c.files.validation = ''  # data.validation=file: indices in the training images [resumable]

    c.long_tail = Group()
    c.long_tail.imbalance = real(100.0, 1)  # images of the largest class for one of the smallest
    c.long_tail.seed = whole(42, 0, SEED)  # draws the images and their parts


def _training(c: Group):
    """Declare how parameters and learning rates move."""
    c.optimizer = Group()
    c.optimizer.name = 'sgd'  # sgd | adamw | muon: of convolutions, sgd for the rest
    c.optimizer.lr = each(0.1)  # learning rate at factor 1 of the schedule [K]
    c.optimizer.momentum = real(0.9, 0, 1)  # of sgd, muon
    c.optimizer.nesterov = True  # of sgd, muon
    c.optimizer.b1 = real(0.9, 0, 0.999999)  # of adamw
    c.optimizer.b2 = real(0.999, 0, 0.999999)  # of adamw
    c.optimizer.rest = real(0.1)  # muon: learning rate of what is no convolution, as a share of lr
    c.optimizer.rest_momentum = real(None, 0, 1)  # muon: of the same [auto: momentum]
    c.optimizer.rescale = False  # muon: before an update a kernel is scaled to the norm √(its outputs)
    c.optimizer.rates = ''  # factors of lr by parameter path: 'fc/=2 bias=64 scale=0'; first found counts
    c.optimizer.weight_decay = each(5e-4)  # sgd: added to the gradient; adamw: decoupled [K]
    c.optimizer.decay = '.*'  # the parameter paths that decay; kernel: no norms; with factors as rates
    c.optimizer.clip = real(0.0)  # largest norm of a member's gradient; 0 is off
    c.optimizer.accumulate = whole(1, 1)  # a step's batch goes through in this many equal parts

    c.schedule = Group()
    c.schedule.name = 'cosine'  # cosine | warm_restarts | multistep | step | linear | constant
    c.schedule.per = one_of('step', 'epoch')  # the learning rate moves every step, or every epoch
    c.schedule.warmup_steps = whole(0)  # the factor is multiplied by min(1, (step+1)/warmup_steps)
    c.schedule.final = real(0.0, 0, 1)  # cosine, warm_restarts, linear: lowest learning rate as a share of lr
    c.schedule.period = whole(10, 0, 1_000_000)  # warm_restarts: epochs of the first cycle; 0: a quarter
    c.schedule.multiplier = whole(2, 1, 1000)  # warm_restarts: each cycle is this many times the one before
    c.schedule.milestones = wholes((60, 120, 160))  # multistep: epochs at which lr is multiplied by gamma
    c.schedule.step_size = whole(30, 1)  # step: every this many epochs lr is multiplied by gamma
    c.schedule.gamma = real(0.1)  # multistep, step

    c.early_stopping = Group()
    c.early_stopping.patience = whole(0)  # evaluations without a new best before a stop; 0: off [resumable]
    c.early_stopping.min_epochs = whole(0)  # patience counts only after this epoch [resumable]


def _records(c: Group):
    """Declare what is evaluated, saved and logged, and how a run begins."""
    c.eval = Group()
    c.eval.every_epochs = whole(1, 1)  # how often the validation images are evaluated
    c.eval.batch_size = whole(500, 1)  # images a step in evaluation [resumable]
    c.eval.flip = False  # average the logits of an image and its mirror image
    c.eval.shift = whole(0, 0, 64)  # … and, half of the weight, of it moved diagonally by so many pixels

    c.checkpoint = Group()
    c.checkpoint.every_epochs = whole(1, 1)  # how often the whole state is saved [resumable]
    c.checkpoint.every_steps = whole(0)  # … and within an epoch; 0 is off [resumable]
    c.checkpoint.keep = whole(2, 1)  # newest states that are kept; 1 has none to fall back on [resumable]

    c.log = Group()
    c.log.every_steps = whole(0)  # rows of training metrics within an epoch; 0 is off [resumable]
    c.log.tensorboard = True  # event files in WORKDIR/tensorboard [resumable]
    c.log.pictures = True  # curves, confusions and mistakes in WORKDIR/pictures at the end [resumable]
    c.log.wandb = one_of('disabled', 'offline', 'online')  # whether W&B gets the numbers [resumable]
    c.log.wandb_project = 'jaxcifar'  # [resumable]
    c.log.wandb_group = ''  # what belongs together; a run's sessions do [resumable] [auto: as wandb_name]
    c.log.wandb_name = ''  # [resumable] [auto: the workdir's name]

    c.profile = Group()
    c.profile.steps = wholes((0, 0), 'pair')  # trace the steps from the first up to the second [resumable]

    c.init_from = ''  # begin with weights of RUN, RUN@last, resnet20-ternary, EXPORT or FILE; a+b: in turn
    c.resume_from = ''  # start a new workdir from another run's checkpoint: WORKDIR or WORKDIR@STEP
    c.members_as = 'auto'  # of a device: loop (in turns) | one (side by side), dense, grouped [resumable]
    c.steps_per_call = whole(None, 1, 100_000)  # steps a call takes [auto: 1 to 8 on GPUs] [resumable]
    c.compile_cache = ''  # folder in which XLA keeps compiled programs for the next run [resumable]


FIELDS: dict[str, Field] = declared(_declare())
PER_MEMBER = tuple(name for name, field in FIELDS.items() if field.shape == 'member')
