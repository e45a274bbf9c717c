"""Words searched for at every layer: scores by hand, and ranks by Transformers' own norm and head."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerscope import word_search
from layerscope.analysis.pass_at import pass_at
from layerscope.bundled import BUNDLED
from layerscope.errors import SuiteError

BRIDGE = "The currency of the country whose capital is {subject} is called the"


def test_scores_by_hand():
    """Two items, two words, five layers and the output; the band is layers 2 to 4.

    The first item's word passes at layer 3 and at the output, the other's there never; the second's passes nowhere and
    the first's, in its place, at layers 1 and 2.
    """
    far = [9, 9, 9, 9, 9, 9]
    ranks = np.array([[[9, 9, 1, 9, 9, 2], far], [[2, 1, 9, 9, 9, 9], far]])
    found = pass_at("logit", ranks, [[0], [1]], 2)
    assert (found.lens, found.k, found.n_items, found.band) == ("logit", 2, 2, (2, 4))
    assert (found.passed, found.others, found.gain) == (0.5, 0.5, 0.0)
    assert found.gain_interval == (-1.0, 1.0)  # of two items, one gains 1 and the other loses 1
    assert (found.in_band, found.others_in_band) == (pytest.approx(1 / 6), pytest.approx(1 / 6))
    assert found.at_output == 0.5
    assert pass_at("logit", ranks, [[0], [1]], 1).at_output == 0.0


def test_items_that_share_a_word_are_no_null_for_each_other():
    ranks = np.array([[[1, 1], [9, 9]], [[1, 1], [9, 9]], [[9, 9], [1, 1]]])
    found = pass_at("logit", ranks, [[0], [0], [1]], 1)
    assert (found.passed, found.others) == (1.0, 0.0)


@pytest.mark.parametrize("bridge", [None, BRIDGE])
def test_its_ranks_are_those_of_transformers(bridge: str | None):
    found = word_search(suite="capitals", lenses="logit", bridge=bridge, ks=(3, 40))
    pairs = {"Germany": "Berlin", "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Canada": "Ottawa"}
    text = "Give the city name only, plain text. The capital of {subject} is called simply"
    asked = [((bridge or text).format(subject=a if bridge else s), s if bridge else a) for s, a in pairs.items()]
    assert set(found.words) == {word for _, word in asked} and found.skipped == ()
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    ids = {
        w: [i for f in (w, f" {w}") if len(i := tokenizer(f, add_special_tokens=False).input_ids) == 1]
        for _, w in asked
    }
    best, output = [], []
    for prompt, word in asked:
        with torch.inference_mode():
            states = model(tokenizer(prompt, return_tensors="pt").input_ids, output_hidden_states=True).hidden_states
            rows = [model.model.norm(state[0, -1]) for state in states[1:-1]] + [
                states[-1][0, -1]
            ]  # the last is normed
            logits = model.lm_head(torch.stack(rows))
        own = logits[:, [i[0] for i in ids[word]]].amax(1, keepdim=True)
        ranks = 1 + (logits > own).sum(1)
        best.append(int(ranks[:-1].min()))
        output.append(int(ranks[-1]))
    for score in found.scores:
        assert score.n_items == len(asked)
        assert score.passed == pytest.approx(np.mean([rank <= score.k for rank in best]))
        assert score.at_output == pytest.approx(np.mean([rank <= score.k for rank in output]))


def test_every_fitted_lens_comes_with_its_shuffled_null():
    found = word_search(suite="capitals", lenses="logit,tuned", ks=(1,))
    assert [score.lens for score in found.scores] == ["logit", "tuned", "tuned_shuffled"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"suite": "capitals", "bridge": "no place"}, "A bridge is a template with {subject}"),
        ({"suite": "berlin"}, "at least 2 words of one token each"),
        ({"suite": "capitals", "ks": (0,)}, "ks are ranks from 1 on"),
    ],
)
def test_what_cannot_be_is_refused(words: dict, message: str):
    with pytest.raises(SuiteError, match=message):
        word_search(**words)
