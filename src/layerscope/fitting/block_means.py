"""The mean Jacobian of one block, from sums over positions that are gathered while text streams forward.

A branch is `last(inner(first(norm(x))))`. Its Jacobian at one position is `W_last G W_first D`, with `D` that of the
norm, `(gain / r) (I - u u' / d)` where `u` is the standardised stream, and `G` what the inner part does: a diagonal for
an MLP, three maps for attention, by its values, queries and keys. `G / r` averages to small matrices, and what lies
along `u` to one matrix of inner width by d_model, so that the mean needs no cotangent of model width. With attention,
effects on all later counted positions are added up, as a Jacobian lens has it. Sums of two corpora added give those of
both.

A norm behind a branch is a junction of its own: its mean derivative is taken apart from that of the branch before it,
whose targets are weighted by one over the size of what the norm reads.
"""

from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerscope.errors import ModelError
from layerscope.fitting.head_path import HeadPath, selection
from layerscope.model.block_anatomy import AGREES, BlockAnatomy, Branch, Projection, depends, gradients
from layerscope.unembedding import Norm


@dataclass
class BranchSums:
    """Sums over counted positions, in float64; each is empty until something is gathered."""

    n: int = 0
    """Source positions."""
    inner: list[Float[Tensor, "..."]] = field(default_factory=list)
    """For every part of the inner map the sum of `G / r`: of an MLP a diagonal for each first projection; of attention
    a number a head for values, then `[head, d_head, d_own]` for queries and for keys."""
    along: Float[Tensor, "d_inner d_model"] | None = None
    """Sum of `(G W_first n) u' / r`, n the normed stream without its bias; None where there is no norm."""
    post: Float[Tensor, "d_model d_model"] | None = None
    """Sum of `u u' / r` of what a norm behind the branch reads, over targets;"""
    post_inverse: float = 0.0
    """and of `1 / r`."""

    def add(self, other: "BranchSums") -> None:
        """Take in the sums of other positions."""
        self.n += other.n
        self.inner = [a + b for a, b in zip(self.inner, other.inner, strict=True)] if self.inner else other.inner
        self.along = _sum(self.along, other.along)
        self.post = _sum(self.post, other.post)
        self.post_inverse += other.post_inverse


@dataclass(frozen=True)
class BlockShape:
    """What of a block is the same for every text: its maps, and which features belong to which head."""

    attention: "BranchShape"
    mlp: "BranchShape"
    parallel: bool


@dataclass(frozen=True)
class BranchShape:
    """One branch's maps."""

    norm: Norm | None
    first: tuple[Float[Tensor, "_ d_model"], ...]
    last: Float[Tensor, "d_model d_inner"]
    post: Norm | None
    scale: float
    parts: tuple["_Part", ...] = ()
    """Of attention: for values, queries and keys which projection they come from, and its features by head."""


@dataclass(frozen=True)
class _Part:
    first: int
    coords: Int[Tensor, "head d_own"]
    """For every query head."""


class BlockGatherer:
    """Gathers the sums of one block, batch by batch."""

    def __init__(self, counted: slice) -> None:
        """Begin.

        Args:
            counted: positions that are counted, as sources and as targets.
        """
        self._counted = counted
        self._like: dict[str, HeadPath] = {}
        self._coords: Tensor | None = None
        self.shape: BlockShape | None = None

    def gather(self, anatomy: BlockAnatomy, chosen: Bool[Tensor, " sequence"]) -> "BlockSums":
        """The sums of some of the sequences that a block was run on.

        Raises:
            ModelError: a branch that is not of the known form.
        """
        attention, parts = self._attention(anatomy, chosen)
        mlp = self._mlp(anatomy.mlp, chosen)
        if self.shape is None:
            self.shape = BlockShape(
                _branch_shape(anatomy.attention, parts), _branch_shape(anatomy.mlp, ()), anatomy.parallel
            )
        return BlockSums(attention, mlp)

    # MLP

    def _mlp(self, branch: Branch, chosen: Tensor) -> BranchSums:
        inner = branch.last.read
        gave = [projection.gave for projection in branch.first]
        width = inner.shape[-1]
        slopes = _slopes(inner, gave)
        if self.shape is None:
            _check_elementwise(inner, gave, slopes)
        counted = self._counted
        norm, target = _Standard.of(branch, counted, chosen), _Target.of(branch, counted, chosen)
        weights = (norm.inverse * target.inverse)[..., None]
        sums = BranchSums(n=int(chosen.sum()) * norm.inverse.shape[1])
        sums.inner = [(_counted(slope, branch, counted) * weights).double().sum((0, 1)) for slope in slopes]
        if norm.standard is not None:
            moved = torch.zeros_like(_counted(inner, branch, counted))
            for projection, slope in zip(branch.first, slopes, strict=True):
                without_bias = projection.gave.detach() - _of_bias(projection, branch.norm)
                step = _counted(slope * without_bias, branch, counted)
                moved += step.view(*step.shape[:-1], -1, width).sum(-2)
            sums.along = _outer(moved * weights, norm.standard)
        sums.post, sums.post_inverse = target.outer, target.sum_of_inverses
        return sums

    # Attention

    def _attention(self, anatomy: BlockAnatomy, chosen: Tensor) -> tuple[BranchSums, tuple[_Part, ...]]:
        branch, attended, counted = anatomy.attention, anatomy.attended, self._counted
        norm, target = _Standard.of(branch, counted, chosen), _Target.of(branch, counted, chosen)
        value, key = attended.value.detach(), attended.key.detach()
        groups = attended.query.shape[1] // key.shape[1]
        values, keys = value.repeat_interleave(groups, 1), key.repeat_interleave(groups, 1)
        queries = attended.query.detach()[:, :, counted]
        # Of counted targets on all sources: attention, and what a change of the score changes.
        seen = attended.weights[:, :, counted] * target.inverse[:, None, :, None]
        moved = seen * attended.slope[:, :, counted]
        outputs = attended.weights[:, :, counted] @ values
        paths = self._paths(anatomy)
        inverse = norm.inverse[:, None, :, None]
        of_values = (seen.sum(2)[:, :, counted] * norm.inverse[:, None]).double().sum((0, 2))
        q_weights = _embedded(moved * inverse, counted, value.shape[2])
        one_pull = paths.query.pull(_widened((moved @ keys) * inverse, counted, value.shape[2]))
        of_queries = _pairs(values, paths.query.pull_sum(q_weights, keys)) - _pairs(outputs, one_pull[:, :, counted])
        of_keys = self._keys(paths.key, moved, norm.inverse, queries, values, outputs, groups)
        sums = BranchSums(n=int(chosen.sum()) * norm.inverse.shape[1], inner=[of_values, of_queries, of_keys])
        if norm.standard is not None:
            tangents = paths.tangents(branch.norm)
            along = self._along(tangents, seen, moved, queries, keys, values, outputs, groups)
            sums.along = _outer(along * norm.inverse[..., None], norm.standard)
        sums.post, sums.post_inverse = target.outer, target.sum_of_inverses
        return sums, paths.parts(groups)

    def _keys(
        self,
        path: HeadPath,
        moved: Tensor,
        inverse: Tensor,
        queries: Tensor,
        values: Tensor,
        outputs: Tensor,
        groups: int,
    ) -> Tensor:
        """Sum over sources of `G / r` by keys, one query head of every key head at a time."""
        counted, n = self._counted, values.shape[2]
        by_group = []
        for group in range(groups):
            some = slice(group, None, groups)
            q, v, o = queries[:, some], values[:, some], outputs[:, some]
            onto = moved[:, some, :, counted] * inverse[:, None, None]  # [sequence, kv_head, target, source]
            weights = _embedded(onto.transpose(-1, -2), counted, n)  # [sequence, kv_head, source, target]
            one_pull = path.pull(_widened(onto.transpose(-1, -2) @ q, counted, n))[:, :, counted]
            by_group.append(_pairs(v[:, :, counted], one_pull) - _pairs(o, path.pull_sum(weights, q)))
        return torch.stack(by_group, 1).flatten(0, 1)  # [kv_head, group, ...] to [head, ...]

    def _along(
        self,
        tangents: tuple[Tensor, Tensor, Tensor],
        seen: Tensor,
        moved: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        outputs: Tensor,
        groups: int,
    ) -> Float[Tensor, "sequence counted d_inner"]:
        """What every counted token does where its projections grow in proportion, summed over counted targets."""
        counted = self._counted
        v, q = tangents[0].repeat_interleave(groups, 1), tangents[1]
        k = tangents[2].repeat_interleave(groups, 1)[:, :, counted]
        by_value = seen.sum(2)[:, :, counted, None] * v[:, :, counted]
        p = moved * (q[:, :, counted] @ keys.transpose(-1, -2))
        by_query = p @ values - p.sum(-1, keepdim=True) * outputs
        p = moved[..., counted] * (queries @ k.transpose(-1, -2))
        by_key = p.sum(2)[..., None] * values[:, :, counted] - p.transpose(-1, -2) @ outputs
        return (by_value + by_query + by_key).transpose(1, 2).flatten(2)

    def _paths(self, anatomy: BlockAnatomy) -> "_Paths":
        attended, first = anatomy.attended, anatomy.attention.first
        inside = {id(module) for module in attended.module.modules()}
        norms = [call for call in anatomy.norms if id(call.module) in inside]
        found = {}
        for name in ("value", "query", "key"):
            rows: Tensor = getattr(attended, name)
            found[name] = _source(rows, [projection.gave for projection in first], name)
        gave = {name: first[i].gave for name, i in found.items()}
        if self._coords is None:
            self._coords = selection(gave["value"], attended.value)
        for name in ("query", "key"):
            self._like[name] = HeadPath(gave[name], getattr(attended, name), norms, self._like.get(name))
        return _Paths(self._like["query"], self._like["key"], self._coords, found, anatomy.attention)


@dataclass(frozen=True)
class _Paths:
    """How queries, keys and values come from their projections."""

    query: HeadPath
    key: HeadPath
    value_coords: Int[Tensor, "kv_head d_head"]
    first: dict[str, int]
    branch: Branch

    def tangents(self, norm: Norm | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of values, queries and keys, where projections grow in proportion to what they made of the normed stream."""

        def grown(name: str) -> Tensor:
            projection = self.branch.first[self.first[name]]
            return projection.gave.detach() - _of_bias(projection, norm)

        v = grown("value")[..., self.value_coords].transpose(1, 2)
        return v, self.query.push(grown("query")), self.key.push(grown("key"))

    def parts(self, groups: int) -> tuple[_Part, ...]:
        """For the matrices at the end."""
        return (
            _Part(self.first["value"], self.value_coords.repeat_interleave(groups, 0)),
            _Part(self.first["query"], self.query.coords),
            _Part(self.first["key"], self.key.coords.repeat_interleave(groups, 0)),
        )


@dataclass(frozen=True)
class _Standard:
    """What a norm in front makes of counted positions."""

    standard: Float[Tensor, "sequence counted d_model"] | None
    """`u`; None where there is no norm."""
    inverse: Float[Tensor, "sequence counted"]
    """`1 / r`, or one where there is no norm; zero for sequences that are not chosen, so that they give no source."""

    @classmethod
    def of(cls, branch: Branch, counted: slice, chosen: Tensor) -> "_Standard":
        stream = branch.stream[:, counted].detach().float()
        counts = chosen.to(stream)[:, None]
        if branch.norm is None:
            return cls(None, counts.expand(stream.shape[:2]))
        standard, inverse = _standardised(stream, branch.norm)
        return cls(standard, inverse * counts)


@dataclass(frozen=True)
class _Target:
    """What a norm behind a branch makes of counted positions."""

    inverse: Float[Tensor, "sequence counted"]
    """`1 / r`, or one where there is no norm."""
    sum_of_inverses: float
    """Over chosen sequences."""
    outer: Float[Tensor, "d_model d_model"] | None

    @classmethod
    def of(cls, branch: Branch, counted: slice, chosen: Tensor) -> "_Target":
        gave = branch.last.gave.detach().reshape(branch.stream.shape)[:, counted].float()
        if branch.post is None:
            return cls(torch.ones(gave.shape[:2], device=gave.device), 0.0, None)
        standard, inverse = _standardised(gave, branch.post)
        outer = _outer((standard * inverse[..., None])[chosen], standard[chosen])
        return cls(inverse, float(inverse[chosen].double().sum()), outer)


@dataclass
class BlockSums:
    """The sums of both branches."""

    attention: BranchSums = field(default_factory=BranchSums)
    mlp: BranchSums = field(default_factory=BranchSums)

    @property
    def n(self) -> int:
        """Source positions."""
        return self.attention.n

    def add(self, other: "BlockSums") -> None:
        """Take in the sums of other sequences."""
        for part in fields(self):
            getattr(self, part.name).add(getattr(other, part.name))

    def matrix(self, shape: BlockShape) -> Float[Tensor, "d_model d_model"]:
        """The block's mean Jacobian, on columns, in float64: `(I + M)(I + A)`, or `I + A + M` of parallel branches."""
        attention = _attention_matrix(self.attention, shape.attention)
        mlp = _mlp_matrix(self.mlp, shape.mlp)
        whole = attention + mlp if shape.parallel else attention + mlp + mlp @ attention
        whole.diagonal().add_(1.0)
        return whole


def _attention_matrix(sums: BranchSums, shape: BranchShape) -> Float[Tensor, "d_model d_model"]:
    of_values, of_queries, of_keys = (part / sums.n for part in sums.inner)
    first = [matrix.double() for matrix in shape.first]
    value, query, key = shape.parts
    inner = of_values[:, None, None] * first[value.first][value.coords]  # [head, d_head, d_model]
    for part, mean in ((query, of_queries), (key, of_keys)):
        inner = inner + mean @ first[part.first][part.coords]
    return _outside(inner.flatten(0, 1), sums, shape)


def _mlp_matrix(sums: BranchSums, shape: BranchShape) -> Float[Tensor, "d_model d_model"]:
    width = shape.last.shape[1]
    inner = torch.zeros(width, shape.first[0].shape[1], dtype=torch.float64, device=shape.last.device)
    for diagonal, matrix in zip(sums.inner, shape.first, strict=True):
        inner += ((diagonal / sums.n)[:, None] * matrix.double()).view(-1, *inner.shape).sum(0)
    return _outside(inner, sums, shape)


def _outside(
    inner: Float[Tensor, "d_inner d_model"], sums: BranchSums, shape: BranchShape
) -> Float[Tensor, "d_model d_model"]:
    """Norm, last projection, the norm behind it, and the scale, round what the inner part does on average."""
    if shape.norm is not None and sums.along is not None:
        if shape.norm.gain is not None:
            inner = inner * shape.norm.gain.double()
        if shape.norm.kind == "layer":
            inner = inner - inner.mean(1, keepdim=True)
        inner = inner - sums.along / (sums.n * inner.shape[1])
    whole = shape.last.double() @ inner
    if shape.post is not None and sums.post is not None:
        if shape.post.kind == "layer":
            whole = whole - whole.mean(0, keepdim=True)
        whole = whole - (sums.post / (sums.post_inverse * len(whole))) @ whole
        if shape.post.gain is not None:
            whole = shape.post.gain.double()[:, None] * whole
    return shape.scale * whole


def _branch_shape(branch: Branch, parts: tuple[_Part, ...]) -> BranchShape:
    first = tuple(projection.matrix for projection in branch.first)
    return BranchShape(branch.norm, first, branch.last.matrix, branch.post, branch.scale, parts)


def _standardised(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """What is left of rows once a norm has taken mean and size away, and one over that size."""
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    inverse = torch.rsqrt(x.square().mean(-1) + norm.eps)
    return x * inverse[..., None], inverse


def _of_bias(projection: Projection, norm: Norm | None) -> Tensor:
    """What a projection makes of the norm's bias, its own included."""
    width = projection.read.shape[-1]
    bias = None if norm is None else norm.bias
    return projection(projection.read.new_zeros(width) if bias is None else bias.to(projection.read))


def _slopes(inner: Tensor, gave: list[Tensor], cotangent: Tensor | None = None) -> tuple[Tensor, ...]:
    """Gradients by first projections.

    Raises:
        ModelError: one of them feeds nothing.
    """
    found = gradients(inner, gave, cotangent)
    if any(slope is None for slope in found):
        raise ModelError("The chain of closed forms asks for MLPs that use all their projections; use --method exact.")
    return tuple(slope for slope in found if slope is not None)


def _check_elementwise(inner: Tensor, gave: list[Tensor], slopes: tuple[Tensor, ...]) -> None:
    """Refuse an MLP whose hidden features mix.

    Raises:
        ModelError: random signs of hidden features are not those of its slopes.
    """
    width = inner.shape[-1]
    generator = torch.Generator().manual_seed(0)
    signs = (torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1).to(inner)
    signed = _slopes(inner, gave, signs.expand(inner.shape))
    for plain, found in zip(slopes, signed, strict=True):
        fits = plain.shape[-1] % width == 0
        if not fits or (found - plain * signs.repeat(plain.shape[-1] // width)).norm() > AGREES * plain.norm():
            raise ModelError(
                "The chain of closed forms asks for MLPs whose hidden features do not mix between their projections, "
                "but this model's do; use --method exact."
            )


def _source(rows: Tensor, gave: list[Tensor], name: str) -> int:
    """Which projection rows of heads are made from.

    Raises:
        ModelError: none, or several.
    """
    found = [i for i, projection in enumerate(gave) if depends(rows, projection)]
    if len(found) != 1:
        raise ModelError(
            f"The chain of closed forms asks for a {name} of attention that comes from one projection, but this "
            f"model's comes from {len(found)}; use --method exact."
        )
    return found[0]


def _counted(rows: Tensor, branch: Branch, counted: slice) -> Tensor:
    """Of all positions the counted ones; some MLPs run through them in one row."""
    return rows.detach().reshape(*branch.stream.shape[:2], -1)[:, counted]


def _widened(rows: Float[Tensor, "sequence head counted d_head"], counted: slice, n: int) -> Tensor:
    """Rows of counted positions among zeros."""
    wide = rows.new_zeros(*rows.shape[:2], n, rows.shape[-1])
    wide[:, :, counted] = rows
    return wide


def _embedded(weights: Float[Tensor, "sequence head counted other"], counted: slice, n: int) -> Tensor:
    """The same of weights."""
    return _widened(weights, counted, n)


def _pairs(
    left: Float[Tensor, "sequence head token d_left"], right: Float[Tensor, "sequence head token d_right"]
) -> Float[Tensor, "head d_left d_right"]:
    """Sums of outer products over sequences and tokens."""
    return torch.einsum("bhti,bhtj->hij", left, right).double()


def _outer(
    left: Float[Tensor, "sequence token d_left"], right: Float[Tensor, "sequence token d_right"]
) -> Float[Tensor, "d_left d_right"]:
    return (left.flatten(0, 1).T @ right.flatten(0, 1)).double()


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
