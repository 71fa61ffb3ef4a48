"""Checkpoints that are larger than memory: pruned tensor by tensor, from a directory into a directory.

The files, in the order in which they are used:

1. `checkpoint.py`: the tensors in a directory.
2. `layout.py`: boxes of stored tensors that are boxes of parameters.
3. `names.py`: the library's own conversions say which.
4. `packed.py`: packed weights and their scales.
5. `pieces.py`: the tensors of the result, and what each takes from where.
6. `copying.py`: numbers from file to file, cut on the way.
7. `shards.py`: the files of the result, whole or not at all.
8. `folder.py`: configs, tokenizers and the rest.
9. `planned.py`: a plan whose norms are read from the files.
10. `progress.py`: the bar.
11. `target.py`: the directory of the result before and during a run.
12. `run.py`: all together.
"""

from fxprune.streaming.run import Streamed, stream

__all__ = ["Streamed", "stream"]
