"""Models that are made from a config, such as those of Hugging Face: which of their widths the config can say.

Nothing is known of a family. The numbers of the config are changed one by one, the class is built from each changed
config, and its shapes are compared with what a removal would leave. No package is imported: a config is an object with
`to_dict`, whose class has `from_dict`, in the attribute `config` of a model with `save_pretrained`.

The files, in the order in which they are used:

1. `fields.py`: the numbers of a config as data, and configs with other numbers.
2. `builder.py`: the class, built from a config without memory for weights.
3. `layers.py`: fewer layers, and models that count them from 0.
4. `probes.py`: what changes when numbers of the config change.
5. `moves.py`: groups that shrink by the share by which some numbers shrink.
6. `widths.py`: which groups lose the same share, and the config for a removal.
7. `constructed.py`: the small model gets what its class makes of the new config.
8. `directory.py`: a directory gets all files of a save or none.
9. `saving.py`: `save_pretrained`, where the config says a small model and where not.
"""

from fxprune.configs.builder import NotBuiltError, has_config
from fxprune.configs.constructed import ChangedByHandError, construct
from fxprune.configs.layers import LayersStayError
from fxprune.configs.widths import BeyondConfigError, Config, ConfigWidths

__all__ = [
    "BeyondConfigError",
    "ChangedByHandError",
    "Config",
    "ConfigWidths",
    "LayersStayError",
    "NotBuiltError",
    "construct",
    "has_config",
]
