"""The door to every field of a run: `from configs import base`, then `base.get_config()`."""

from jaxcifar.config.fields import FLOAT_ENDS, get_config, number_or_list

__all__ = ['FLOAT_ENDS', 'get_config', 'number_or_list']
