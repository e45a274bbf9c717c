"""Device, dtype and memory: what can be asked for, what is refused and how; a small budget changes no number."""

import re

import pytest
import torch
from polars.testing import assert_frame_equal

from layerscope import Suite, load_suite, probe
from layerscope.errors import PlacementError
from layerscope.model.placement import MemoryPlan, Placement, check_fits, format_bytes, free_memory, parse_memory, place

CPU = torch.device("cpu")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is asked for")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("4GiB", 4294967296),
        ("500MB", 500000000),
        ("1024", 1024),
        ("1.5 GiB", 1610612736),
        (" 2 kib ", 2048),
        ("1tb", 1000000000000),
        ("3B", 3),
        ("0.5KB", 500),
        ("0", 0),
    ],
)
def test_an_amount_of_memory_is_read_in_bytes(text: str, n_bytes: int):
    assert parse_memory(text) == n_bytes


@pytest.mark.parametrize("text", ["", "much", "4 G", "GiB", "-1", "-4GiB", "1e9", "4GiB2", "1,5GiB", "4 Gi B", "nan"])
def test_what_is_no_amount_of_memory_is_refused_with_examples(text: str):
    with pytest.raises(PlacementError) as caught:
        parse_memory(text)
    assert str(caught.value) == f"'{text}' is no amount of memory; write it as 4GiB, 500MB or a number of bytes."


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"), (3 << 20, "3.0 MiB"), (3 << 29, "1.5 GiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes_are_written_for_people(n_bytes: int, text: str):
    assert format_bytes(n_bytes) == text


def test_a_cpu_computes_in_float32():
    found = place("cpu")  # asked once: what is free changes from one moment to the next
    assert found == place("cpu", "float32", memory=found.memory)
    assert place("cpu", memory=7) == Placement(CPU, torch.float32, 7)
    assert place("cpu").dtype_name == "float32"


@without_cuda
def test_auto_is_the_cpu_where_there_is_nothing_else():
    assert place(memory=7) == place("cpu", memory=7)


def test_the_budget_is_half_of_what_is_free_where_none_is_given():
    free = free_memory(CPU)
    assert free > 64 << 20
    assert place("cpu").memory == pytest.approx(free / 2, rel=0.2)  # others use the machine meanwhile


@pytest.mark.parametrize(
    ("device", "dtype", "sentence"),
    [
        ("tpu", "auto", "'tpu' is no device known here; choose auto, cpu, cuda or cuda:N."),
        ("cuda:", "auto", "'cuda:' is no device known here; choose auto, cpu, cuda or cuda:N."),
        ("cpu", "int8", "'int8' is no dtype to compute in; choose auto, float32 or bfloat16."),
        (
            "cpu",
            "bfloat16",
            "On a CPU every model computes in float32 (weights stay as stored); leave --dtype out.",
        ),
    ],
)
def test_a_device_or_dtype_that_is_none_is_refused(device: str, dtype: str, sentence: str):
    with pytest.raises(PlacementError, match=f"^{re.escape(sentence)}$"):
        place(device, dtype)


@without_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_is_refused_where_there_is_none(device: str):
    sentence = f"'{device}' was asked for, but this machine has no CUDA device; use --device cpu."
    with pytest.raises(PlacementError, match=f"^{re.escape(sentence)}$"):
        place(device)


def test_forward_and_sweep_follow_one_another_in_the_plan():
    assert MemoryPlan(residuals=10, block=1, activations=2, sweep=100).total == 110
    assert MemoryPlan(residuals=10, block=70, activations=60, sweep=100, resident=1000).total == 1140


@pytest.mark.parametrize("largest", ["residuals", "one block's parameters", "activations", "the sweep"])
def test_a_plan_over_the_budget_is_refused_by_its_largest_part(largest: str):
    parts = {"residuals": 1, "one block's parameters": 1, "activations": 1, "the sweep": 1} | {largest: 3 << 20}
    plan = MemoryPlan(*parts.values())
    check_fits(plan, Placement(CPU, torch.float32, plan.total))
    with pytest.raises(PlacementError) as caught:
        check_fits(plan, Placement(CPU, torch.float32, plan.total - 1))
    assert f"({largest}: 3.0 MiB), but the budget is 3.0 MiB; raise --memory, or" in str(caught.value)


class Plans:
    """An observer that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.blocks_done: list[tuple[int, int]] = []

    def plan(self, text: str) -> None:
        self.lines.append(text)

    def blocks(self, done: int, total: int) -> None:
        self.blocks_done.append((done, total))

    def vocabulary(self, done: int, total: int) -> None:
        pass

    def patches(self, done: int, total: int) -> None:
        pass


def test_a_budget_that_no_prompt_fits_is_refused_before_any_work():
    watcher = Plans()
    with pytest.raises(PlacementError) as caught:
        probe(memory=1000, device="cpu", observer=watcher)
    assert re.fullmatch(
        r"This run needs at least [\d.]+ MiB \(the sweep: [\d.]+ MiB\), but the budget is 1000 B; raise --memory, "
        r"or shorten the longest prompt\.",
        str(caught.value),
    )
    assert (watcher.lines, watcher.blocks_done) == ([], [])


def test_a_budget_that_forces_several_passes_changes_nothing_but_rounding():
    suite, lenses = load_suite("capitals"), ("logit", "next_norm")
    options = {"positions": "all", "lenses": lenses, "device": "cpu"}
    one, several = Plans(), Plans()
    expected = probe(suite=suite, memory=1 << 40, observer=one, **options)
    whole = expected.record.provenance.memory_planned_bytes
    alone = probe(suite=Suite("one", "", suite.prompts[:1]), memory=1 << 40, **options)
    one_prompt = alone.record.provenance.memory_planned_bytes
    budget = one_prompt + (whole - one_prompt) // 4

    found = probe(suite=suite, memory=budget, observer=several, **options)
    n_passes = int(re.search(r" in (\d+) passes$", several.lines[0])[1])
    assert n_passes > 2
    assert "passes" not in one.lines[0]
    n_layers = expected.record.model.n_layers
    assert one.blocks_done == [(done, n_layers) for done in range(1, n_layers + 1)]
    assert several.blocks_done == [(done, n_passes * n_layers) for done in range(1, n_passes * n_layers + 1)]
    assert found.record.provenance.memory_planned_bytes <= budget < whole
    # Ids, ranks and flags exactly; numbers as two float32 passes of small blocks have them: 3e-5 of logits of ten.
    assert_frame_equal(found.rows, expected.rows, rel_tol=1e-3, abs_tol=1e-4)
    assert found.record.identity.ok
    assert_same_suite(found.record.suite, expected.record.suite)


def assert_same_suite(found, expected) -> None:
    """Ids and ranks exactly, what the model says up to the rounding of another batch."""
    for one, other in zip(found.prompts, expected.prompts, strict=True):
        assert (one.output.top_ids, one.output.answer_rank) == (other.output.top_ids, other.output.answer_rank)
        assert one.output.top_probs == pytest.approx(other.output.top_probs, rel=1e-3, abs=1e-4)
        assert one.output.p_answer == pytest.approx(other.output.p_answer, rel=1e-3, abs=1e-4)
        assert list(map(without_logits, one.answers)) == list(map(without_logits, other.answers))
        assert (one.key, one.token_ids, one.subject_end) == (other.key, other.token_ids, other.subject_end)


def without_logits(answer):
    forms = tuple(form.model_copy(update={"logit": None}) for form in answer.forms)
    return answer.model_copy(update={"forms": forms})


def test_the_plan_says_model_machine_budget_and_suite():
    watcher = Plans()
    probe(suite="berlin", device="cpu", memory=1 << 30, observer=watcher)
    (line,) = watcher.lines
    assert line.startswith("layerscope/reference · 12 blocks · ")
    assert " on disk (bfloat16) · cpu float32 · " in line
    assert re.search(r" MiB planned of 1\.0 GiB · suite berlin, \d+ prompts$", line)


def test_memory_that_runs_out_in_the_middle_is_said_in_a_sentence():
    class Hungry(Plans):
        def blocks(self, done: int, total: int) -> None:
            raise MemoryError

    with pytest.raises(
        PlacementError, match=r"The memory of cpu ran out, although the plan of .* give a smaller --memory"
    ):
        probe(device="cpu", positions="last", observer=Hungry())
