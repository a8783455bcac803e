"""Every field of a run with its default. Experiments start from here and change what they need.

A field marked [K] takes one number, or one number per member: --config.optimizer.lr=.1,.2
A field marked [auto] is filled in after the command line, from the fields it depends on.
A field marked [resumable] may change between a run and its continuation; the others may not.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

FLOAT_ENDS = '^(?!conv1/|features_conv0/|features_0_0/|fc/|classifier)'  # all but stem and classifier


def get_config() -> ConfigDict:
    """The configuration that all the others are made from."""
    c = ConfigDict()
    c.dataset = 'cifar10'  # digits | cifar10 | cifar100 | npz:FILE | folder:… | imagenet:… | stream:FOLDER
    c.network = 'resnet20'  # a name of jaxcifar.models; resnet20+resnet8 is one member of each
    c.members = placeholder(int)  # K, how many networks are trained together [auto: 1 per name or split]
    c.member_ids = placeholder(object)  # train these of a larger population [auto: 0,1,…,K-1]
    c.split = 'shared'  # who sees what: shared | overlap | disjoint | fusion | file | long_tail[_standard]
    c.loss = 'cross_entropy'  # cross_entropy | logit_adjustment | balanced_softmax; a+b is one of each
    c.coupling = 'none'  # what members do to each other: none | mutual | fusion
    c.update_order = 'simultaneous'  # simultaneous: all from one forward pass; sequential: members take turns
    c.view = 'none'  # what the forward pass sees of the weights: none | ternary; a+b is one of each
    c.seed = number_or_list(0)  # data order and augmentation; with a member's id its init too [K]
    c.devices = placeholder(int)  # how many of the accelerators to use [auto: all] [resumable]
    c.sync_norm = True  # batch statistics over all devices of a member, or over each device alone
    c.epochs = 100  # passes over the training images [resumable]
    c.batch_size = 128  # images a step, over all devices
    c.precision = 'float32'  # float32 | bfloat16 of the computation; parameters stay float32
    c.label_smoothing = number_or_list(0.0)  # ε in (1-ε)·onehot + ε/C [K]
    c.tau = number_or_list(1.0)  # τ of logit_adjustment, the cross entropy of z + τ·log π [K]
    c.ema = 0.0  # decay of an average of weights and statistics that is evaluated instead; 0 is off
    c.augment = placeholder(str)  # names or a preset of data.augment [auto: crop(4)+flip; none of streams]
    c.augment_each = False  # members that share a batch draw its augmentation each for itself

    c.model = ConfigDict()
    c.model.dropout = 0.0  # share of a block's hidden activations set to zero in training
    c.model.drop_path = 0.0  # stochastic depth: how often the last block is skipped, the first never
    c.model.init = 'he'  # he | he_dense | torch | dirac: the distributions that weights are drawn from
    c.model.zero_init = False  # norms that end a block begin at 0, so that blocks begin as nothing
    c.model.norm_momentum = 0.9  # share of the old in a step's running statistics of batch norms
    c.model.whitening = ''  # of speednet: bias, to train one behind its filters [auto: without]
    c.model.shortcut = ''  # A | B, of resnet8 to resnet110 and others that have it [auto: their own]
    c.model.stem = ''  # cifar | imagenet, for images of 32 or 224 pixels [auto: cifar]

    c.mutual = ConfigDict()
    c.mutual.temperature = 1.0  # T of the softmax that members compare, and T² times their divergence

    c.fusion = ConfigDict()
    c.fusion.rule = 'multiplicative'  # multiplicativeAddition | TransformerBase | concatenation are others
    c.fusion.alpha = 1.0  # the loss is that of the fused prediction and α times the sum of the members'
    c.fusion.residual = False  # the global head begins at 0, and adds to the mean of the members' logits
    c.fusion.dropout = 0.2  # within the fusion module
    c.fusion.heads = 8  # of TransformerBase's attention
    c.fusion.lr = placeholder(float)  # of the fusion module [auto: by rule and features; so optimizer.lr]
    c.fusion.lr_head = placeholder(float)  # of the global head [auto: fusion.lr]
    c.fusion.weight_decay = 1e-4  # of both; optimizer.name, momentum and decay are the members'
    c.fusion.clip = 1.0  # largest norm of the gradient of both; 0 is off
    c.fusion.clip_all = 0.0  # … of both and all members together, before their own; 0 is off
    c.fusion.schedule = 'cosine'  # of both: a name of schedule.name, with that one's other fields
    c.fusion.freeze_epochs = 0  # epochs at the start in which members keep weights and batch statistics

    c.ternary = ConfigDict()
    c.ternary.rule = 'twn'  # twn: threshold and scale from the weights; ttq: two learned scales
    c.ternary.per = 'tensor'  # tensor | channel: what has a threshold and scales of its own
    c.ternary.scale = True  # of twn; without, weights are -1, 0 and 1
    c.ternary.layers = FLOAT_ENDS  # regular expression: kernels, by path, that are ternary; .* is all
    c.ternary.scale_lr = 0.01  # of ttq: the scales' learning rate for one of lr
    c.ternary.scale_decay = 0.0  # of ttq: the scales' weight decay for one of weight_decay
    c.ternary.float_epochs = 0.0  # epochs that begin with training the floats
    c.ternary.blend_epochs = 0.0  # … and then epochs in which floats turn ternary bit by bit

    c.data = ConfigDict()
    c.data.root = placeholder(str)  # where datasets are kept [auto: $JAXCIFAR_DATA or data] [resumable]
    c.data.loader = 'host'  # host: a PyTorch DataLoader; device: all in device memory [resumable]
    c.data.validation = 'holdout'  # holdout, fusion_holdout, fusion_validation, file, val_lt, test, none
    c.data.validation_size = 0.1  # of holdout: share of the training images, or a number of images
    c.data.split_seed = 0  # which images are held out; not the run's seed, so that runs compare
    c.data.order = 'shared'  # shared: members see the same batches; member: each its own
    c.data.drop_last = False  # leave out an epoch's last, shorter batch
    c.data.image_size = placeholder(int)  # digits and image files get this [auto: 224 of imagenet, or 32]
    c.data.workers = 0  # processes that read batches; images on disk want one a core, others none [resumable]

    c.experts = ConfigDict()
    c.experts.count = 4  # members whom the images of split=overlap and disjoint are parted for
    c.experts.seed = 42  # draws all of these parts
    c.experts.holdout = 0.2  # share or number of images that no expert sees: the fusion holdout
    c.experts.validation = 0.1  # share or number of those that fusion does not train on
    c.experts.shared = 0.4  # overlap: share of the rest, the pool, that all experts see
    c.experts.unique = 0.15  # overlap: share of the pool that each expert sees alone

    c.files = ConfigDict()
    c.files.train = ''  # split=file: FILE, or one a member: FILE,FILE; .npy, .json or .txt [resumable]
    c.files.validation = ''  # data.validation=file: indices in the training images [resumable]

    c.long_tail = ConfigDict()
    c.long_tail.imbalance = 100.0  # images of the largest class for one of the smallest
    c.long_tail.seed = 42  # draws the images and their parts

    c.optimizer = ConfigDict()
    c.optimizer.name = 'sgd'  # sgd | adamw | muon: of convolutions, sgd for the rest
    c.optimizer.lr = number_or_list(0.1)  # learning rate at factor 1 of the schedule [K]
    c.optimizer.momentum = 0.9  # of sgd, muon
    c.optimizer.nesterov = True  # of sgd, muon
    c.optimizer.b1 = 0.9  # of adamw
    c.optimizer.b2 = 0.999  # of adamw
    c.optimizer.rest = 0.1  # muon: learning rate of what is no convolution, as a share of lr
    c.optimizer.rescale = False  # muon: before an update a kernel is scaled to the norm √(its outputs)
    c.optimizer.rates = ''  # factors of lr by parameter path: 'fc/=2 bias=64 scale=0'; first found counts
    c.optimizer.weight_decay = number_or_list(5e-4)  # sgd: added to the gradient; adamw: decoupled [K]
    c.optimizer.decay = '.*'  # the parameter paths that decay; kernel: no norms; with factors as rates
    c.optimizer.clip = 0.0  # largest norm of a member's gradient; 0 is off
    c.optimizer.accumulate = 1  # a step's batch goes through in this many equal parts

    c.schedule = ConfigDict()
    c.schedule.name = 'cosine'  # cosine | warm_restarts | multistep | step | linear | constant
    c.schedule.per = 'step'  # the learning rate moves every step, or every epoch
    c.schedule.warmup_steps = 0  # the factor is multiplied by min(1, (step+1)/warmup_steps)
    c.schedule.final = 0.0  # cosine, warm_restarts, linear: lowest learning rate as a share of lr
    c.schedule.period = 10  # warm_restarts: epochs of the first cycle; 0 is a quarter of all
    c.schedule.multiplier = 2  # warm_restarts: each cycle is this many times the one before
    c.schedule.milestones = (60, 120, 160)  # multistep: epochs at which lr is multiplied by gamma
    c.schedule.step_size = 30  # step: every this many epochs lr is multiplied by gamma
    c.schedule.gamma = 0.1  # multistep, step

    c.early_stopping = ConfigDict()
    c.early_stopping.patience = 0  # evaluations without a new best that stop a member; 0 is off [resumable]
    c.early_stopping.min_epochs = 0  # patience counts only after this epoch [resumable]

    c.eval = ConfigDict()
    c.eval.every_epochs = 1  # how often the validation images are evaluated
    c.eval.batch_size = 500  # images a step in evaluation [resumable]
    c.eval.flip = False  # average the logits of an image and its mirror image
    c.eval.shift = 0  # … and, half of the weight, of the image moved up-left and down-right so many pixels

    c.checkpoint = ConfigDict()
    c.checkpoint.every_epochs = 1  # how often the whole state is saved [resumable]
    c.checkpoint.every_steps = 0  # … and within an epoch; 0 is off [resumable]
    c.checkpoint.keep = 2  # how many of the newest states are kept, at least 2 [resumable]

    c.log = ConfigDict()
    c.log.every_steps = 0  # rows of training metrics within an epoch; 0 is off [resumable]
    c.log.tensorboard = True  # event files in WORKDIR/tensorboard [resumable]
    c.log.wandb = 'disabled'  # disabled | offline | online [resumable]
    c.log.wandb_project = 'jaxcifar'  # [resumable]
    c.log.wandb_group = ''  # what belongs together; a run's sessions do [resumable] [auto: as wandb_name]
    c.log.wandb_name = ''  # [resumable] [auto: the workdir's name]

    c.profile = ConfigDict()
    c.profile.steps = (0, 0)  # trace the steps from the first up to the second number [resumable]

    c.init_from = ''  # begin with weights of WORKDIR, WORKDIR@last, an export or a PyTorch file; a+b: in turn
    c.resume_from = ''  # start a new workdir from another run's checkpoint: WORKDIR or WORKDIR@STEP
    c.steps_per_call = 1  # steps that a device takes without asking the host; images in memory [resumable]
    c.compile_cache = ''  # folder in which XLA keeps compiled programs for the next run [resumable]
    return c


def number_or_list(default: float):
    """A field that takes one number, or one number per member."""
    field = placeholder(object)
    field.set(default)
    return field
