"""Make a run's members portable: with all that is needed to run them, and nothing about a machine."""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.members import alone, member_names
from jaxcifar.data.datasets import Dataset
from jaxcifar.engine.fusion import NAME
from jaxcifar.formats.portable import FusedHead, Portable

# Fields that name things on the machine where the run was trained.
PRIVATE = ('resume_from', 'init_from', 'compile_cache', 'files.train', 'files.validation',
           'log.wandb_group', 'log.wandb_name')  # fmt: skip


def portable_member(config: ConfigDict, k: int, dataset: Dataset, variables: dict) -> Portable:
    """Return the member `k` of a run with its variables as the network sees them."""
    one = alone(config, k)
    about = {
        'name': member_names(config)[k],
        'network': one.network,
        'options': {name: value for name, value in one.model.items() if value != ''},
        'precision': one.precision,
        'classes': list(dataset.classes),
        'image_size': dataset.image_size,
        'mean': list(dataset.mean),
        'std': list(dataset.std),
        'config': saved.to_dict(released(one)),
        'has_split': not _needs_files(one),
    }
    return Portable(about, variables)


def portable_head(config: ConfigDict, members: list[Portable], params: dict) -> FusedHead:
    """Return the coupling's head on all members of a run."""
    classes = len(members[0].about['classes'])
    sizes = [member.network().feature_size() for member in members]
    fusion = saved.to_dict(config)['fusion']
    return FusedHead({'name': NAME, 'classes': classes, 'feature_sizes': sizes, 'fusion': fusion}, params)


def _needs_files(config: ConfigDict) -> bool:
    """Return whether the split of a run cannot be made without its index files."""
    return 'file' in (config.split, config.data.validation)


def released(config: ConfigDict) -> ConfigDict:
    """Return the config for weights as the networks see them, without anything about a machine."""
    config = ConfigDict(saved.to_dict(config))
    # A folder's name may say who trained; the last part is enough to know the data.
    kind, _, path = config.dataset.partition(':')
    with config.ignore_type():
        config.dataset = f'{kind}:{Path(path).name}' if path else kind
        # The weights are already as the network sees them: a view would change them again.
        config.view, config.coupling, config.ema, config.devices = 'none', 'none', 0.0, 1
        config.data.root, config.data.workers = None, 0
        # Index files stay behind, and a split that needs them could not be made.
        if _needs_files(config):
            config.split, config.data.validation = 'shared', 'none'
        for field in PRIVATE:
            config.update_from_flattened_dict({field: ''})
    return config
