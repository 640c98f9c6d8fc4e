"""Distances between distributions are scipy's, and what counts as the same choice."""

import numpy as np
import pytest
from scipy import special, stats

from tunesmith.parity.checks import adapter_check, distribution_check
from tunesmith.parity.figures import Distances, base_distance, distances, figures, first_divergence
from tunesmith.parity.prompts import Prompt


def test_kl_is_scipys():
    rng = np.random.default_rng(0)
    tuned, base, form = (rng.normal(size=(5, 11)).astype(np.float32) * 3 for _ in range(3))
    measured = distances(tuned, base, np.pad(form, ((0, 0), (0, 2))))
    p, b, q = (special.softmax(x.astype(np.float64), axis=-1) for x in (tuned, base, form))
    np.testing.assert_allclose(measured.kl_T, special.rel_entr(p, q).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(measured.from_base_T, stats.entropy(b, q, axis=-1), rtol=1e-9)
    np.testing.assert_allclose(base_distance(tuned, base), special.rel_entr(p, b).sum(-1), rtol=1e-9)
    assert (measured.reference_T == tuned.argmax(-1)).all() and (measured.lag_T >= 0).all()
    never = np.array([[0.0, 1.0, -np.inf]], dtype=np.float32)  # what the reference rules out adds nothing
    assert distances(never, never, never[:, :]).kl_T == 0.0


def test_a_form_that_is_not_finite_fails():
    broken = np.full((2, 3), np.nan, dtype=np.float32)
    whole = np.zeros((2, 3), dtype=np.float32)
    measured = figures([distances(whole, whole, broken)])
    assert measured.kl_mean is None
    assert distribution_check(measured, None).state == adapter_check(measured, 1.0, None).state == "fail"


def test_a_tie_is_no_divergence_of_the_model():
    messages = [{"role": "user", "content": "hi"}]
    prompt = Prompt(name="one", messages=messages, text="", ids=[1], forged=False, continuation=[5, 6, 7])
    zeros, ids = np.zeros(3), np.array([5, 6, 7])

    def beside(choice, lag):
        choice_T, lag_T = np.array(choice), np.array(lag)
        return Distances(kl_T=zeros, from_base_T=zeros, reference_T=ids, choice_T=choice_T, lag_T=lag_T)

    one = beside([9, 6, 8], [0.01, 0.0, 0.3])
    assert figures([one]).agreement_or_tie == pytest.approx(2 / 3)
    shown = first_divergence([one], [prompt], str)
    assert (shown.position, shown.so_far, shown.form, shown.tie) == (2, "[5, 6]", "[8]", False)
    assert first_divergence([beside([9, 6, 7], [0.01, 0.0, 0.0])], [prompt], str).tie
    assert first_divergence([beside([5, 6, 7], [0.0, 0.0, 0.0])], [prompt], str) is None
