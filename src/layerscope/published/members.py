"""The blocks of the published JSON as data: which member holds which attribute of ours, and since which dialect.

Members that are more than an attribute (counts, layers by name, sentences) are made by the modules of `write`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerscope.published.layout import EXTENDED, GENERATION_M, Dialect


@dataclass(frozen=True)
class Member:
    """One member of a block."""

    key: str
    """Its key; slashes lead into blocks within the block. `{lens}` stands for the lens that the block is about."""
    attribute: str
    """What of ours it holds; dots lead to attributes of attributes."""
    since: Dialect = GENERATION_M
    """The dialect in which it appeared; the extended one has everything that generation M has."""


def members(names: str = "", extended: str = "") -> tuple[Member, ...]:
    """Members by `key=attribute`, or by a key alone, whose `.` and `@` are underscores in our name.

    Args:
        names: Those of both dialects.
        extended: Those that follow in the extended one alone.
    """
    return tuple(
        Member(key, attribute or re.sub("[.@]", "_", key), since)
        for words, since in ((names, GENERATION_M), (extended, EXTENDED))
        for key, _, attribute in (word.partition("=") for word in words.split())
    )


def block_of(table: Sequence[Member], value: object, dialect: Dialect, **names: str) -> dict[str, Any]:
    """The members of a block in their order; null where an attribute, or what has it, is None.

    Args:
        dialect: Members of a later one are left out.
        names: What stands in keys for `{lens}` and the like.
    """
    block: dict[str, Any] = {}
    for member in table:
        if member.since is GENERATION_M or dialect is EXTENDED:
            *outer, key = (part.format(**names) for part in member.key.split("/"))
            inner = block
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[key] = _attribute(value, member.attribute)
    return block


def value_at(value: Any, path: str) -> Any:
    """A field of a field: names of attributes or entries with dots between; None where any on the way is."""
    for name in path.split("."):
        if value is not None:
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name)
    return value


def _attribute(value: Any, path: str) -> object:
    value = value_at(value, path)
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


# The run, the model, the machine and the head

RUN_IDENTITY = members("schema_version run_id code_version=layerscope_version created_utc")
MODEL_STATS = members("num_layers=n_layers d_model n_heads d_vocab")
UNEMBED_BIAS = members("present l2_norm max_abs")
COPY_MASK = members("ignored_token_ids=ids ignored_token_str_sample=sample size")
ENVIRONMENT = members("""
    torch_version=torch cuda_version cudnn=cudnn_version device dtype_compute deterministic_algorithms
    cudnn_benchmark seed python platform
""")
NUMERIC_HEALTH = members("any_nan any_inf max_abs_logit_p99 min_prob_p01")
NORM_TEMPERATURE = members("tau_norm_per_layer=tau_per_layer", extended="tau_norm_bound_hits=bound_hits")
LAYER_FLAG = members("layer lens any_nan any_inf")
LAST_LAYER = members("""
    kl_to_final_bits top1_agree p_top1_lens p_top1_model p_answer_lens answer_rank_lens temp_est kl_after_temp_bits
    cfg_transform/scale=scale cfg_transform/softcap=softcap kl_after_transform_bits/scale=kl_after_scale_bits
    kl_after_transform_bits/softcap=kl_after_softcap_bits
    kl_after_transform_bits/scale_then_softcap=kl_after_scale_then_softcap_bits
""")
"""What was measured; then come the gates that follow from it, and in the extended dialect a finer search."""
LAST_LAYER_GATES = members("""
    warn_high_last_layer_kl gates/warn_high_last_layer_kl=warn_high_last_layer_kl
    gates/threshold_bits=threshold_bits gates/delta_kl_temp_bits=delta_kl_temp_bits
""")
LAST_LAYER_REFINED = members(extended="temp_est_refined kl_after_temp_refined_bits")

# Prompts

PROMPT_KEY = members("prompt_id prompt_variant")
FACT_KEY = members("fact_key fact_index")
GOLD_ANSWER = members("string pieces first_id answer_ids variant")
GOLD_ALIGNMENT = members("ok status variant first_id answer_ids pieces")
CONTROL_SUMMARY = members(
    """
        first_control_margin_pos max_control_margin first_control_strong_pos max_control_top2_logit_gap
        delta_top2_logit_ctl
    """,
    extended="reason",
)
ABLATION = members(
    "L_copy_orig L_sem_orig L_copy_nf L_sem_nf delta_L_copy delta_L_sem",
    extended="variant_orig variant_nf sensitive",
)

# Milestones

NAMED_LAYER = members("name layer")
MILESTONE = members("layer reason row entropy_bits kl_to_final_bits p_answer answer_rank")
CONFIRMATION = members(
    """
        L_semantic_raw=onset_raw L_semantic_tuned=onset_tuned Δ_window=window_layers L_semantic_confirmed=layer
        confirmed_source=source
    """,
    extended="""
        reason confirmed_nontrivial=nontrivial L_semantic_confirmed_any=layer_any
        L_semantic_confirmed_any_nontrivial=layer_any_nontrivial
    """,
)

# Whether milestones survive

SCALED_TARGET = members("uniform_margin_pass_frac top2_gap_pass_frac")
REPEATABILITY = members("max_rank_dev p95_rank_dev top1_flip_rate")
DECODING_TARGET = members("""
    name layer rank1_agree delta_answer_rank top1_token_agree answer_rank_post_ln2
    answer_rank_next_ln1=answer_rank_next_norm top1_id_post_ln2 top1_id_next_ln1=top1_id_next_norm p_answer_post_ln2
    p_answer_next_ln1=p_answer_next_norm p_top1_post_ln2 p_top1_next_ln1=p_top1_next_norm
    {spearman}=spearman_top50_union jaccard@10 jaccard@50 status
""")
ONSET_GAP = members("logit norm=next_norm gap_layers")
LENS_AGREEMENT = members("jaccard@10 jaccard@50 {spearman}=spearman_top50_ref")
FORWARD_MILESTONES = members("primary pass1/layer=pass1_layer pass2/layer=pass2_layer delta_layers")
FORWARD = members("topk_jaccard_at_primary_layer gate/repeatability_forward_pass=agree enabled mode")
POSITION_WINDOW = members("L_semantic_{lens}=L_semantic rank1_frac n_positions rank1_frac_strong_run2")
POSITION_REASONS = members(extended="rank1_frac_reason rank1_frac_strong_run2_reason")
GRID_POSITION = members("pos_frac=fraction pos_index=position answer_rank")
TRAJECTORY = members("shape slope r2 n_spikes")
SAMPLED_TRAJECTORY = (*TRAJECTORY, *members("sampled_layers", extended="shape_trend n_spikes_relative"))


# Headline lens and raw residual

RAW_SAMPLE = members("""
    layer kl_norm_vs_raw_bits top1_agree p_top1_{lens}=p_top1 p_top1_raw p_answer_{lens}=p_answer p_answer_raw
    answer_rank_{lens}=answer_rank answer_rank_raw is_answer_{lens}=is_answer is_answer_raw
""")
RAW_SUMMARY = members("first_norm_only_semantic_layer max_kl_norm_vs_raw_bits lens_artifact_risk")
RAW_WINDOW = members("radius center_layers layers_checked norm_only_semantics_layers max_kl_norm_vs_raw_bits_window")
RAW_PREVALENCE = members("""
    pct_layers_kl_ge_1.0 pct_layers_kl_ge_0.5 n_norm_only_semantics_layers earliest_norm_only_semantic
    max_kl_norm_vs_raw_bits
""")
RAW_PERCENTILES = members("js_divergence_percentiles l1_prob_diff_percentiles")
RAW_FIRST = members("first_js_le_0.1 first_l1_le_0.5 teacher_entropy_bits")
RAW_FIRST_LATER = members(extended="first_js_le_0.1_after_L_semantic first_l1_le_0.5_after_L_semantic")
TOPK_OVERLAP = members("K=k jaccard_raw_norm_p50 first_jaccard_raw_norm_ge_0.5")
ARTEFACT_SCORE = members("lens_artifact_score=v1 lens_artifact_score_v2=v2 tier")
SCORE_RULE = members("""
    weights/pct_ge_1.0=share_kl weights/norm_only=norm_only weights/max_kl_scaled=max_kl thresholds/low=medium_from
    thresholds/high=high_above v2_addends/js_p50=js v2_addends/l1_p50=l1
""")

# Fitted lenses

AUDITED_LAYERS = members("baseline {lens}=fitted delta")
ROTATION_GAIN = members("delta_kl_interaction_p50=interaction_bits delta_kl_tuned_p50=tuned_bits")
POSITIONS_AUDIT = members(
    "pos_grid=grid pos_in_dist_le_0.92=in_dist_le_0_92_bits pos_ood_ge_0.96=ood_ge_0_96_bits pos_ood_gap=gap_bits",
)
HEAD_MISMATCH = members(
    """
        kl_bits_tuned_final=kl_bits kl_bits_tuned_final_after_tau_star=kl_after_temperature_bits
        tau_star_modelcal=temperature
    """,
    extended="kl_bits_tuned_final_after_softcap=kl_after_softcap_bits reason",
)
ATTRIBUTED_GAIN = members(
    "ΔKL_tuned=tuned_bits ΔKL_temp=temperature_bits ΔKL_rot=rotation_bits",
    extended="ΔKL_bias=bias_bits ΔKL_linear=linear_bits",
)

TRAINING_SEED = members("seed")
TRAINING_TEXT = members("seq_len content_hash=sha256 samples_streamed=n_documents")
TRAINING_DEVICE = members("device dtype")

# Facts, guidance and the pack that evaluations start from

FACT = members("""
    fact_key fact_index L_copy_strict L_copy_soft_k1 L_semantic_{lens}=L_semantic L_semantic_confirmed
    L_semantic_margin_ok_{lens}=L_semantic_margin_ok delta_hat
""")
PUBLISHED_FACT = (*FACT, *members("row_index=row_in_file"))
FACT_ROWS = members(extended="row_in_pass row_in_file")
FACT_AGGREGATES = members("""
    n L_copy_strict_median=L_copy_strict.median_rounded L_copy_soft_k1_median=L_copy_soft_k1.median_rounded
    L_semantic_{lens}_median=L_semantic.median_rounded
    L_semantic_confirmed_median=L_semantic_confirmed.median_rounded
    L_semantic_margin_ok_{lens}_median=L_semantic_margin_ok.median_rounded delta_hat_median
""")
FACT_MEDIANS = members("""
    L_copy_strict=L_copy_strict.median L_copy_soft_k1=L_copy_soft_k1.median L_semantic_{lens}=L_semantic.median
    L_semantic_confirmed=L_semantic_confirmed.median L_semantic_margin_ok_{lens}=L_semantic_margin_ok.median
    delta_hat=delta_hat_median
""")
GUIDANCE = members("prefer_ranks suppress_abs_probs")
PACK_ARTEFACT = members("""
    lens_artifact_score=whole.score.v1 lens_artifact_score_v2=whole.score.v2
    js_divergence_p50=whole.js_divergence_percentiles.p50 l1_prob_diff_p50=whole.l1_prob_diff_percentiles.p50
    first_js_le_0.1 first_l1_le_0.5 jaccard_raw_norm_p50=topk_overlap.jaccard_raw_norm_p50
    first_jaccard_raw_norm_ge_0.5=topk_overlap.first_jaccard_raw_norm_ge_0_5
    pct_layers_kl_ge_1.0=whole.pct_layers_kl_ge_1_0 n_norm_only_semantics_layers=whole.n_norm_only_semantics_layers
    earliest_norm_only_semantic=whole.earliest_norm_only_semantic risk_tier=whole.score.tier
""")
PACK_ENTROPY = members(
    "entropy_gap_bits_p25=percentiles.p25 entropy_gap_bits_p50=percentiles.p50 entropy_gap_bits_p75=percentiles.p75",
)
