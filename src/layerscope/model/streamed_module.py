"""A model's module that runs with its weights left in their files, and the parts of it that passes hook into."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.errors import ModelError
from layerscope.model.architecture import Architecture, read_norm
from layerscope.model.block_parts import Order, Sublayers, order_of, sublayers_of
from layerscope.model.lent_weights import LentWeights
from layerscope.model.model_input import ModelInput
from layerscope.model.placement import Placement
from layerscope.model.streaming import StreamedLinear
from layerscope.unembedding import Norm

Progress = Callable[[int, int], None]
"""Called with (blocks done, blocks to do) after every block."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, eq=False)
class StreamedModule:
    """What every kind of pass runs."""

    module: Any
    """Transformers' own."""
    architecture: Architecture
    head_name: str
    """Path of the unembedding."""
    weights: LentWeights
    placement: Placement
    family_verified: bool
    """Whether tests cover its family."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.architecture.n_layers

    @property
    def n_heads(self) -> int | None:
        """Attention heads of a block; None where there are none."""
        return self.architecture.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.architecture.d_model

    @property
    def blocks(self) -> list[nn.Module]:
        """In the order in which they run."""
        return list(self.module.get_submodule(self.architecture.blocks).children())

    @property
    def head(self) -> nn.Module:
        """The unembedding."""
        head: nn.Module = self.module.get_submodule(self.head_name)
        return head

    @property
    def n_context(self) -> int | None:
        """How many tokens the model was made to read at most; None where its config does not say."""
        limit = getattr(self._config, "max_position_embeddings", None)
        return None if limit is None or limit <= 0 else int(limit)  # XLNet's -1 is no limit

    @cached_property
    def widest_activation(self) -> int:
        """Numbers that one token holds inside a block, roughly: three of a gated layer's width, and the stream."""
        widths = [m.out_features for block in self.blocks for m in block.modules() if isinstance(m, StreamedLinear)]
        return 3 * max(widths, default=4 * self.d_model) + 6 * self.d_model

    @cached_property
    def sublayers(self) -> tuple[Sublayers, ...]:
        """Of every block the modules whose outputs are added to the stream.

        Raises:
            ModelError: a part that is not known, named; or a stream that is no sum of what is added to it.
        """
        kind = self._config.model_type
        return tuple(sublayers_of(block, i, kind, self._config) for i, block in enumerate(self.blocks, start=1))

    @cached_property
    def norms_behind(self) -> tuple[tuple[Norm | None, Norm | None], ...]:
        """For every block the norms between attention's and the MLP's last matrix and the sum."""

        def norm(i: int, path: str | None) -> Norm | None:
            return None if path is None else self.norm(f"{self.architecture.blocks}.{i}.{path}")

        return tuple((norm(i, part.post_norm), norm(i, part.mlp_norm)) for i, part in enumerate(self.sublayers))

    @property
    def block_order(self) -> Order | None:
        """Whether a block's MLP reads the state that its attention has written to; None where that is not known."""
        return order_of(self._config.model_type, self._config)

    def norm(self, path: str | None) -> Norm | None:
        """The norm that a module computes; None where there is none."""
        return None if path is None else read_norm(self.optional(path), path, self.d_model)

    def optional(self, path: str) -> Any:
        """The submodule at a path whose last part may be None in some members of a family."""
        parent, _, leaf = path.rpartition(".")
        return getattr(self.module.get_submodule(parent), leaf)

    def run(self, given: ModelInput) -> Tensor:
        """The module's own forward.

        Raises:
            ModelError: a family that no test covers fails on its way.
        """
        try:
            logits: Tensor = self.module(**given.arguments(), use_cache=False).logits
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            if self.family_verified:
                raise  # a fault of ours, to be seen whole
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ModelError(
                f"A '{self.architecture.family}' model could not be run on text alone, its weights left in their files "
                f"({reason}); its family is not among those that `layerscope models` lists."
            ) from error
        return logits

    @property
    def _config(self) -> Any:
        return self.module.config.get_text_config()
