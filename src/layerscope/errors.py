"""Every error a caller may catch, as one tree; each message says what was expected, what came, and what to do.

LayerscopeError
├── SuiteError            a suite that cannot be found or read: file, line and field
├── CheckpointError       a checkpoint that is missing, incomplete, damaged, or not safetensors
├── ModelError            a model that cannot be probed: no causal LM, remote code, a family that is not understood
├── TokenizerError        no tokenizer, or one that cannot encode a prompt
├── PlacementError        a device, dtype or memory budget that cannot be had
├── LensError             an unknown lens, or one that does not fit the model
├── CorpusError           text that cannot be read or is too short to fit on
├── NumericError          a head that is not finite: no number can be trusted
└── RunError              a run folder that cannot be read, or must not be overwritten
"""

import errno

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""How the system says that a disk has no room for a file."""


class LayerscopeError(Exception):
    """Anything layerscope refuses to do, said in one sentence with its remedy."""


class SuiteError(LayerscopeError):
    """A suite that cannot be found or read."""


class CheckpointError(LayerscopeError):
    """A checkpoint that is missing, incomplete, damaged, or not in safetensors files."""


class ModelError(LayerscopeError):
    """A model that cannot be probed."""


class TokenizerError(LayerscopeError):
    """A tokenizer that is missing or cannot encode a prompt."""


class PlacementError(LayerscopeError):
    """A device, dtype or memory budget that cannot be had."""


class LensError(LayerscopeError):
    """An unknown lens, or one that does not fit the model."""


class CorpusError(LayerscopeError):
    """Text that cannot be read or is too short to fit on."""


class NumericError(LayerscopeError):
    """A head or final distribution that is not finite."""


class RunError(LayerscopeError):
    """A run folder that cannot be read or must not be overwritten."""
