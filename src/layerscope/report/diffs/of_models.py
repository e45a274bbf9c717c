"""The report on a variant of a model and its base."""

from layerscope.analysis.model_diff import ModelDiff
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import (
    Block,
    Name,
    Paragraph,
    Part,
    Report,
    Section,
    Sentence,
    Table,
    paragraph,
    row,
    sentence,
)
from layerscope.report.diffs.quoted import Quoted, facts_section, notes_section
from layerscope.report.sentences.model_diff import NOISE_TIMES

MOST = 5
"""Blocks and modules that are named."""
LAYER_COLUMNS = (
    ("relative_change", Unit.SHARE, "change"),
    ("injected", Unit.SHARE, "injected"),
    ("inherited", Unit.SHARE, "inherited"),
    ("injected_kl_bits", Unit.BITS, "KL by the injected error"),
    ("kl_bits", Unit.BITS, "KL of both lenses"),
    ("top1_agreement", Unit.SHARE, "top-1 agreement"),
)
AT_EMBEDDING = "no block writes the embedding"


def report_of_models(found: ModelDiff, quoted: Quoted) -> Report:
    """The report.

    Args:
        found: the comparison.
        quoted: its file.
    """
    return Report(
        f"{found.variant.id} against its base {found.base.id}",
        _opening(found, quoted),
        (
            _output(found, quoted),
            facts_section(quoted, found.suite, "No suite was asked, so that nothing is said of facts."),
            _blocks(found, quoted),
            _layers(found, quoted),
            *notes_section(quoted, found.notes),
            _reading(found, quoted),
        ),
    )


def _opening(found: ModelDiff, quoted: Quoted) -> Paragraph:
    text = quoted.claim
    base, variant = ((text(Unit.TEXT, which, "id"), text(Unit.TEXT, which, "storage")) for which in ("base", "variant"))
    which = sentence("The base is {} ({}), the variant {} ({}).", *base, *variant)
    adapter = None
    if found.variant.adapter is not None:
        adapter = sentence("The variant is read with {}.", text(Unit.TEXT, "variant", "adapter"))
    return paragraph(which, adapter, _headline(found, quoted))


def _headline(found: ModelDiff, quoted: Quoted) -> Sentence:
    n = quoted.claim(Unit.COUNT, "output", "n_positions")
    kl = quoted.claim(Unit.BITS, "output", "kl_mean_bits")
    if found.is_identical:
        return sentence(
            "Nothing differs at {} positions of text and at every layer: the largest divergence of outputs is {} bits.",
            n,
            quoted.claim(Unit.BITS, "output", "kl_max_bits"),
        )
    noise = found.noise
    if noise is not None and found.output.kl_mean_bits < NOISE_TIMES * noise.kl_mean_bits:
        return sentence(
            "At {} positions of text they differ by {} bits in the mean, which is not clearly more than the {} bits by "
            "which the base differs from itself with its sequences batched otherwise.",
            n,
            kl,
            quoted.claim(Unit.BITS, "noise", "kl_mean_bits"),
        )
    return sentence(
        "At {} positions of text the variant's output is {} bits from the base's in the mean, and the share of "
        "positions with the same token on top is {}.",
        n,
        kl,
        quoted.claim(Unit.SHARE, "output", "top1_agreement"),
    )


def _output(found: ModelDiff, quoted: Quoted) -> Section:
    def of(unit: Unit, name: str, reason: str | None = None) -> Claim:
        return quoted.claim(unit, "output", name, reason=reason)

    infinite = "larger than a float holds"
    measures = (
        ("KL, mean (bits)", of(Unit.BITS, "kl_mean_bits")),
        ("standard error of that (bits)", of(Unit.BITS, "kl_mean_standard_error")),
        ("KL, median (bits)", of(Unit.BITS, "kl_median_bits")),
        ("KL, largest in a hundred (bits)", of(Unit.BITS, "kl_p99_bits")),
        ("KL, largest (bits)", of(Unit.BITS, "kl_max_bits")),
        ("Jensen-Shannon divergence, mean (bits)", of(Unit.BITS, "js_mean_bits")),
        ("top-1 agreement (share)", of(Unit.SHARE, "top1_agreement")),
        ("perplexity of the base", of(Unit.NUMBER, "base_perplexity", infinite)),
        ("perplexity of the variant", of(Unit.NUMBER, "variant_perplexity", infinite)),
        ("ratio of perplexities", of(Unit.NUMBER, "perplexity_ratio", infinite)),
        ("standard error of that", of(Unit.NUMBER, "perplexity_ratio_standard_error", infinite)),
    )
    rows = tuple(row(label, value) for label, value in measures)
    rights = sentence(
        "The token that follows is on top of the base alone at {} positions and of the variant alone at {} (McNemar, "
        "exact, two-sided: p = {}); positions are taken as independent, which neighbours are not.",
        quoted.claim(Unit.COUNT, "output", "n_right_in_base_only"),
        quoted.claim(Unit.COUNT, "output", "n_right_in_variant_only"),
        quoted.claim(Unit.NUMBER, "output", "mcnemar_p"),
    )
    names = [quoted.claim(Unit.TEXT, "text", i) for i in range(len(found.text))]
    listed: list[Part | str] = []
    for name in names:
        listed += [", ", name] if listed else [name]
    read = sentence("Text that both read: {}.", listed)
    return Section("Output", (Table(("measure", "value"), rows), paragraph(rights, read)))


def _blocks(found: ModelDiff, quoted: Quoted) -> Section:
    place = {layer.layer: i for i, layer in enumerate(found.layers)}
    worst = [place[layer.layer] for layer in found.worst_blocks if layer.injected][:MOST]
    if not worst:
        none = sentence(
            "No block adds to the difference, which is in the embedding or behind the last block, if at all."
        )
        return Section("Which blocks make the difference", (paragraph(none),))
    rows = tuple(
        row(
            quoted.claim(Unit.LAYER, "layers", i, "layer"),
            quoted.claim(Unit.SHARE, "layers", i, "injected"),
            quoted.claim(Unit.SHARE, "layers", i, "inherited"),
        )
        for i in worst
    )
    told = sentence(
        "By the error that its block injects itself, as a share of the base's residual; a block of the largest is the "
        "one to keep in higher precision first."
    )
    blocks: list[Block] = [Table(("layer", "injected", "inherited"), rows, told)]
    if found.modules:
        swapped = tuple(
            row(
                quoted.claim(Unit.LAYER, "modules", i, "layer"),
                quoted.claim(Unit.TEXT, "modules", i, "module"),
                quoted.claim(Unit.SHARE, "modules", i, "injected"),
            )
            for i in range(min(MOST, len(found.modules)))
        )
        alone = sentence("Single linear layers of the variant in the base's block, the largest changes first.")
        blocks.append(Table(("layer", "module", "change of the block's output"), swapped, alone))
    return Section("Which blocks make the difference", tuple(blocks))


def _layers(found: ModelDiff, quoted: Quoted) -> Section:
    rows = tuple(
        row(
            quoted.claim(Unit.LAYER, "layers", i, "layer"),
            *(quoted.claim(unit, "layers", i, name, reason=AT_EMBEDDING) for name, unit, _ in LAYER_COLUMNS),
        )
        for i in range(len(found.layers))
    )
    header = ("layer", *(label for _, _, label in LAYER_COLUMNS))
    told = sentence(
        "Over {} positions of text: residuals in medians, as shares of the norm of the base's; divergences of logit "
        "lenses in bits, means.",
        quoted.claim(Unit.COUNT, "n_rows"),
    )
    return Section("Every layer", (Table(header, rows, told),))


def _reading(found: ModelDiff, quoted: Quoted) -> Section:
    injected = sentence(
        "What the variant's block makes of the base's residual, less what the base's block makes of it, is the "
        "injected error; the rest of the difference came in with the variant's stream and is inherited. Both are norms "
        "of vectors and do not add up; an error that a later norm takes away counts like one that reaches the output."
    )
    rounding = sentence("What rounding alone makes was not measured.")
    if found.noise is not None:
        rounding = sentence(
            "The base against itself, its sequences alone in place of together, differs by {} bits in the mean and by "
            "{} at most, its residuals by {} of their norm at most: differences of that size mean nothing.",
            quoted.claim(Unit.BITS, "noise", "kl_mean_bits"),
            quoted.claim(Unit.BITS, "noise", "kl_max_bits"),
            quoted.claim(Unit.SHARE, "noise", "relative_change"),
        )
    made = sentence(
        "The comparison was made at {} by layerscope {}.",
        quoted.claim(Unit.TEXT, "created_utc"),
        quoted.claim(Unit.TEXT, "layerscope_version"),
    )
    which = sentence(
        "`fingerprint` and `blocks_fingerprint` in {} tell which weights were read.", Name(quoted.document.name)
    )
    return Section("How to read this", (paragraph(injected, rounding), paragraph(made, which)))
