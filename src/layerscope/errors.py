"""Every error a caller may catch, as one tree; each message says what was expected, what came, and what to do."""

import errno

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""How the system says that a disk has no room for a file."""


class LayerscopeError(Exception):
    """Anything layerscope refuses to do, said in one sentence with its remedy."""


class SuiteError(LayerscopeError):
    """A suite that cannot be found or read: file, line and field."""


class CheckpointError(LayerscopeError):
    """A checkpoint that is missing, incomplete, damaged, or not in safetensors files."""


class ModelError(LayerscopeError):
    """A model that cannot be probed: no causal LM, remote code, a family that is not understood."""


class TokenizerError(LayerscopeError):
    """A tokenizer that is missing or cannot encode a prompt."""


class PlacementError(LayerscopeError):
    """A device, dtype or memory budget that cannot be had."""


class LensError(LayerscopeError):
    """An unknown lens, or one that does not fit the model."""


class CorpusError(LayerscopeError):
    """Text that cannot be read or is too short to fit on."""


class NumericError(LayerscopeError):
    """A head or final distribution that is not finite: no number can be trusted."""


class RunError(LayerscopeError):
    """A run folder that cannot be read or must not be overwritten."""
