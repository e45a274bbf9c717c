"""Values that reports claim, and whether cited lines hold them."""

from pathlib import Path

import pytest

from layerscope.audit.lookup.cited_lines import Reader
from layerscope.audit.lookup.key_matching import NameSimilarity, name_similarity
from layerscope.audit.lookup.value_lookup import judge
from layerscope.audit.parse.read_report import read_report
from layerscope.audit.parse.values import pairs_of
from layerscope.audit.parse.vocabulary import plain_marks
from layerscope.report.cited.findings import Judgement
from layerscope.report.cited.sources import Sources
from layerscope.report.numbers import Number
from published_archives import archive_of, folder_of, with_made

DOCUMENT = """{
  "prompt": {
    "context_prompt": "The capital of Germany is"
  },
  "diagnostics": {
    "L_semantic": 31,
    "first_rank_le_1": 31,
    "first_rank_le_5": 29,
    "first_rank_le_10": 28,
    "raw_lens_window": {
      "radius": 4,
      "center_layers": [
        29,
        31
      ],
      "max_kl_bits_window": 38.09606,
      "mode": "window"
    },
    "last_layer": {
      "kl_to_final_bits": 0.0001,
      "temp_est": 1.0,
      "top1_agree": true
    },
    "L_copy": null,
    "padding_1": 1,
    "padding_2": 1,
    "padding_3": 1,
    "size": 6112
  },
  "final_prediction": {
    "mode": "full",
    "topk": [
      [
        " Berlin",
        0.4334017
      ]
    ]
  }
}"""
TABLE = """prompt_id,prompt_variant,layer,token,entropy,top1,p_top1,kl_to_final_bits,answer_rank,cos_to_final
pos,orig,0,x,5.25,a,0.125,9.5,700,-0.25
pos,orig,1,x,4.75,"
",0.25,7.125,30,0.5
pos,orig,2,x,3.125,Berlin,0.75,0.0,1,1.0
"""


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    (tmp_path / "output-M.json").write_text(DOCUMENT, encoding="utf-8")
    (tmp_path / "output-M-pure-next-token.csv").write_text(TABLE, encoding="utf-8")
    return Reader(Sources(tmp_path))


def line_of(key: str) -> int:
    return next(n for n, text in enumerate(DOCUMENT.split("\n"), 1) if f'"{key}"' in text)


def judged(reader: Reader, text: str) -> list[tuple[str, Judgement, str | None]]:
    found = []
    for statement in read_report(text, ("M",)):
        cited = reader.read(statement.references, statement.stems)
        for pair in pairs_of(statement.text):
            verdict = judge(pair, cited, reader, statement.text)
            found.append((pair.key, verdict.judgement, verdict.correct))
    return found


@pytest.mark.parametrize(
    ("printed", "rough", "holds", "fails"),
    [
        ("0.3395", False, [0.33945, 0.33954, 0.33955], [0.3397, 0.3394, -0.3395]),
        ("19.91", False, [19.909895, 19.914], [19.93, 19.89]),
        ("31", False, [31, 31.2], [30, 32, 30.1]),
        ("-0.36", False, [-0.3637, -0.36], [0.36, -0.38]),
        ("4.39e-06", False, [4.391e-06], [4.5e-06, 4.39e-05]),
        ("5.83e−04", False, [0.000583], [0.000573]),
        ("0", True, [0.0, 0.0001], [0.3]),
        ("1,234", False, [1234], [1.234]),
        ("0.000109", False, [0.00010909], [0.000107]),
    ],
)
def test_a_printed_number_stands_for_what_rounds_to_it(
    printed: str, rough: bool, holds: list[int | float], fails: list[int | float]
) -> None:
    found = Number.parse(plain_marks(printed), rough=rough)
    assert isinstance(found, Number)
    assert [v for v in holds if not found.stands_for(v)] == [] and [v for v in fails if found.stands_for(v)] == []


@pytest.mark.parametrize("text", ["", "-", "x", "1.2.3", "e5", "9" * 100, "1e999"])
def test_what_is_no_number_is_none(text: str) -> None:
    assert Number.parse(text) is None


def plain_pairs(text: str) -> list[tuple[str, object]]:
    found = []
    for pair in pairs_of(plain_marks(text)):
        value = pair.value
        if isinstance(value, tuple):
            found.append((pair.key, [v.value if isinstance(v, Number) else v for v in value]))
        else:
            found.append((pair.key, value.value if isinstance(value, Number) else value))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "“use_norm_lens\": true, \"unembed_dtype\": \"torch.float32\"”",
            [("use_norm_lens", True), ("unembed_dtype", "torch.float32")],
        ),
        ("fine: temp_est=1.0; top1_agree = true", [("temp_est", 1.0), ("top1_agree", True)]),
        ("“copy_mask\": { … \"size\": 6112 }", [("size", 6112)]),
        ("rank≤{10,5,1} at {38,38,40}", [("first_rank_le_10", 38), ("first_rank_le_5", 38), ("first_rank_le_1", 40)]),
        ("rank ≤ 10 at L32, ≤ 5 at L33", [("first_rank_le_10", 32), ("first_rank_le_5", 33)]),
        (
            "first_rank thresholds (≤10/≤5/≤1) = 29/29/31",
            [("first_rank_le_10", 29), ("first_rank_le_5", 29), ("first_rank_le_1", 31)],
        ),
        ("first_kl_below_{1.0,0.5}=36/36", [("first_kl_below_1.0", 36), ("first_kl_below_0.5", 36)]),
        ("first_rank_le_1 at L 34; le_5 at L 31", [("first_rank_le_1", 34), ("le_5", 31)]),
        ("ΔL_sem=0, ΔL_copy=n/a", [("ΔL_sem", 0), ("ΔL_copy", None)]),
        ("ΔKL_temp ≈ {−0.52, −0.08, −1.25}", [("ΔKL_temp", [-0.52, -0.08, -1.25])]),
        ("“center_layers\": [33,36,40]", [("center_layers", [33, 36, 40])]),
        ("sits at rank 4 with “Berlin” p≈0.0265", [("p", 0.0265)]),
        ("KL≈12.41 bits", [("KL", 12.41)]),
        ("kl≈1.01–1.14", []),
        ("no rows with copy_collapse=True", []),
        ("rank-1 at L=31/36", []),
        ("cos_to_final ≥ 0.2 at layer 0", []),
    ],
)  # fmt: skip
def test_claimed_values_are_read_with_their_names(text: str, expected: list[tuple[str, object]]) -> None:
    assert plain_pairs(text) == expected


def test_the_layer_that_words_name_goes_with_the_value() -> None:
    pairs = pairs_of(
        "At L 18, entropy≈16.91 bits; layer 2 has KL≈3.25 and cos_to_final ≈0.24 by L5; final-layer p_top1 = 0.43"
    )
    assert [(pair.key, pair.layer) for pair in pairs] == [
        ("entropy", 18),
        ("KL", 2),
        ("cos_to_final", 5),
        ("p_top1", "final"),
    ]


def test_a_probability_goes_with_its_token() -> None:
    pairs = pairs_of("top-5 is \" Germany, 0.6320; which, 0.2468\"; 'Berlin' remains with p≈4.59e-4")
    assert [(pair.token, pair.key) for pair in pairs] == [("Germany", "p"), ("which", "p"), ("Berlin", "p")]


def test_a_difference_is_no_value_of_the_files() -> None:
    pairs = pairs_of("Δ first_rank_le_1 = +3; first_kl_le_1.0 = 5")
    assert [pair.is_derived for pair in pairs] == [True, False]


@pytest.mark.parametrize(
    ("claimed", "name", "expected"),
    [
        ("first_rank_le_1", "first_rank_le_1", NameSimilarity.SAME),
        ("raw_lens_check.summary.lens_artifact_risk", "lens_artifact_risk", NameSimilarity.SAME),
        ("KL", "kl_to_final_bits", NameSimilarity.SAME),
        ("le_5", "first_rank_le_5", NameSimilarity.PART),
        ("answer_mass", "answer_mass_at_L_surface_norm", NameSimilarity.PART),
        ("ΔL_sem", "delta_L_sem", NameSimilarity.SAME),
        ("le_5", "first_rank_le_1", NameSimilarity.NONE),
        ("first_kl_below_1.0", "first_kl_below_0.5", NameSimilarity.NONE),
        ("k", "copy_window_k", NameSimilarity.NONE),
    ],
)
def test_names_may_be_abbreviated_but_not_confused(claimed: str, name: str, expected: NameSimilarity) -> None:
    assert name_similarity(claimed, name) is expected


def test_a_value_in_the_cited_lines_is_supported(reader: Reader) -> None:
    first = line_of("first_rank_le_1")
    text = f"rank≤{{10,5,1}} at {{28,29,31}} [output-M.json:{first}-{first + 2}]"
    assert [judgement for _, judgement, _ in judged(reader, text)] == [Judgement.SUPPORTED] * 3


def test_one_line_may_mean_the_block_that_it_opens_or_lies_in(reader: Reader) -> None:
    for key in ("last_layer", "temp_est"):
        text = f"top1_agree=true, kl_to_final_bits≈0.0001 [output-M.json:{line_of(key)}]"
        assert [judgement for _, judgement, _ in judged(reader, text)] == [Judgement.SUPPORTED] * 2


def test_a_line_of_the_outermost_block_means_itself(reader: Reader) -> None:
    found = judged(reader, f"first_rank_le_5=29 [output-M.json:{line_of('L_copy')}]")
    assert found == [("first_rank_le_5", Judgement.ELSEWHERE, f"output-M.json:{line_of('first_rank_le_5')}")]


def test_a_value_that_stands_elsewhere_is_told_with_its_line(reader: Reader) -> None:
    found = judged(reader, f"window radius=4 [output-M.json:{line_of('kl_to_final_bits')}-{line_of('top1_agree')}]")
    assert found == [("radius", Judgement.ELSEWHERE, f"output-M.json:{line_of('radius')}")]
    found = judged(reader, '“context_prompt": "The capital of Germany is" [output-M.json:20]')
    assert found == [("context_prompt", Judgement.ELSEWHERE, "output-M.json:3")]


def test_another_value_under_the_same_name_contradicts(reader: Reader) -> None:
    found = judged(reader, f"first_rank_le_5=17 [output-M.json:{line_of('first_rank_le_5')}]")
    assert found == [("first_rank_le_5", Judgement.CONTRADICTED, "29")]
    found = judged(reader, "At layer 1, kl_to_final_bits=8.5 [output-M-pure-next-token.csv:3]")
    assert found == [("kl_to_final_bits", Judgement.CONTRADICTED, "7.125")]


@pytest.mark.parametrize(
    "text",
    [
        "Δ first_rank_le_5 = +2 [output-M.json:{L_copy}]",
        "radius≈38.1 [output-M.json:{L_copy}]",
        "novel_name=12 [output-M.json:{L_copy}]",
        "first_rank_le_5=29 [output-M.json]",
        "first_rank_le_5=29 [output-M.json:{L_copy}; output-absent.json:3]",
        "L_semantic=0.5 [output-M.json:{L_semantic}]",
        "max_kl_bits_window≈38.5 [output-M.json:{max_kl_bits_window}]",
        "mode=window [output-M.json:{size}]",
    ],
)
def test_what_cannot_be_told_is_not_called_wrong(reader: Reader, text: str) -> None:
    for name in ("L_copy", "L_semantic", "max_kl_bits_window", "size"):
        text = text.replace("{" + name + "}", str(line_of(name)))
    assert not any(judgement.is_wrong for _, judgement, _ in judged(reader, text))


def test_a_row_of_several_physical_lines_is_cited_by_any_of_them(reader: Reader) -> None:
    for line in (3, 4):
        found = judged(reader, f"At layer 1, p_top1=0.25 and answer_rank=30 [output-M-pure-next-token.csv:{line}]")
        assert [judgement for _, judgement, _ in found] == [Judgement.SUPPORTED] * 2


def test_a_row_of_another_layer_does_not_show_a_value(reader: Reader) -> None:
    found = judged(reader, "At L 2, p_top1=0.75 [output-M-pure-next-token.csv:3]")
    assert found == [("p_top1", Judgement.ELSEWHERE, "output-M-pure-next-token.csv:5")]


@pytest.mark.parametrize("number_of_row", [1, 2, 3])
def test_rows_may_be_counted_from_zero_or_one_and_with_the_header(reader: Reader, number_of_row: int) -> None:
    found = judged(reader, f"p_top1=0.25 [output-M-pure-next-token.csv:row {number_of_row}]")
    assert [judgement for _, judgement, _ in found] == [Judgement.SUPPORTED]


def test_a_token_s_probability_is_found_with_the_token(reader: Reader) -> None:
    inside = line_of(" Berlin")
    assert (
        judged(reader, f"Berlin with p=0.4334 [output-M.json:{inside - 2}-{inside + 2}]")[0][1] is Judgement.SUPPORTED
    )
    found = judged(reader, f"Berlin with p=0.4334 [output-M.json:{line_of('L_copy')}]")
    assert found == [("p", Judgement.ELSEWHERE, f"output-M.json:{inside + 1}")]


@pytest.mark.parametrize("stem", with_made("Meta-Llama-3-70B"))
def test_documents_give_the_block_of_a_cited_line(stem: str, request: pytest.FixtureRequest) -> None:
    archive = archive_of(folder_of(stem, request))
    reader = Reader(archive.sources)
    name = f"output-{stem}.json"
    entry = archive.sources.json(name).at("diagnostics", "last_layer_consistency")
    assert entry is not None
    (statement,) = read_report(f"x=1 [{name}:{entry.line}]", archive.stems)
    (one,) = reader.read(statement.references, statement.stems).jsons
    assert one.lines == frozenset(range(entry.line, entry.last_line)) - {
        n for n in range(entry.line, entry.last_line) if not archive.sources.json(name).within(n, n)
    }
