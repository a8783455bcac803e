"""configs/base.py with a network that compiles and runs in no time."""

from configs.base import get_config as get_config
from experiments.faults.networks import Tiny
from jaxcifar.models import NETWORKS

NETWORKS['tiny'] = Tiny
