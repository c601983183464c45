"""The scale that a prefix starts on, against NumPy and on a real model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix.images import load_images, normalise
from ntkprefix.models import load_dinov2
from ntkprefix.models.statistics import observe_statistics

RNG = np.random.default_rng(0)
ROWS, LENGTH, HEADS, WIDTH = 8, 9, 4, 5


def numpy_statistics(query, key, seen):
    """Ridge regression as ordinary least squares with rows added, in float64; harmonic means as they are defined."""
    beta, centres, masses = WIDTH**-0.5, [], []
    for head in range(HEADS):
        logits = beta * np.einsum("bth,bsh->bts", query[:, :, head], key[:, :, head // 2])
        mass = np.exp(logits).sum(-1)[seen]
        scaled = beta * query[:, :, head][seen]
        deviations = scaled - scaled.mean(0)
        ridge = np.sqrt(1e-2 * deviations.var(axis=0).mean() * len(mass)) * np.eye(WIDTH)
        target = np.concatenate([np.log(mass) - np.log(mass).mean(), np.zeros(WIDTH)])
        centre = np.linalg.lstsq(np.concatenate([deviations, ridge]), target, rcond=None)[0]
        centres.append(centre)
        masses.append([1 / np.mean(1 / mass), 1 / np.mean(np.exp(scaled @ centre) / mass)])
    return np.stack(centres), np.log(np.array(masses)).T


@pytest.mark.parametrize("padded", [False, True])
def test_centre_and_scales_against_numpy(padded):
    query = 2 * RNG.standard_normal((ROWS, LENGTH, HEADS, WIDTH))
    key, value = 1 + RNG.standard_normal((2, ROWS, LENGTH, HEADS // 2, WIDTH))
    counted = RNG.random((ROWS, LENGTH)) < 0.7 if padded else np.ones((ROWS, LENGTH), bool)
    query[~counted] = 10.0  # what is not counted shows nowhere
    found = observe_statistics(
        *(jnp.asarray(array, jnp.float32) for array in (query, key, value)), counted=jnp.asarray(counted)
    )
    centre, (harmonic, centred) = numpy_statistics(query, key, counted)
    np.testing.assert_allclose(found.centre, centre, atol=1e-4)
    np.testing.assert_allclose(found.log_harmonic_mass, harmonic, atol=1e-4)
    np.testing.assert_allclose(found.log_centred_mass, centred, atol=1e-4)


def test_the_centre_of_one_key_is_that_key():
    query, key = jnp.asarray(RNG.standard_normal((1, 500, 1, WIDTH)), jnp.float32), 3 * jnp.ones((1, 1, 1, WIDTH))
    found = observe_statistics(query, key, key)
    np.testing.assert_allclose(found.centre, key[0, 0], rtol=0.03)  # drawn towards zero by the ridge
    assert abs(found.log_centred_mass[0]) < 0.1 < 3 < abs(found.log_harmonic_mass[0])


@pytest.mark.parametrize("queries", [jnp.zeros((2, 3, 1, WIDTH)), jnp.ones((1, 1, 1, WIDTH))])
def test_queries_that_are_all_alike_have_no_direction(queries):
    key = jnp.ones((*queries.shape[:2], 1, WIDTH))
    found = observe_statistics(queries, key, key)
    np.testing.assert_array_equal(found.centre, 0)
    np.testing.assert_allclose(found.log_centred_mass, found.log_harmonic_mass)


def test_a_prefix_is_faint_in_no_layer_of_a_real_model():
    """The weight of a prefix of k = 1 for the typical query: e^-85 in one head, were there no centre."""
    images = load_images("digits", size=70).x_train[:48]
    found = load_dinov2().attention_statistics(normalise(jnp.asarray(images)))

    def logits(query, key, value):
        del value
        return query / 8, jax.nn.logsumexp(jnp.einsum("btnh,bsnh->btns", query, key) / 8, axis=-1)

    scaled, log_mass = load_dinov2().observe(normalise(jnp.asarray(images)), logits)
    followed = found.log_centred_mass[:, None, None] + jnp.einsum("lbtnh,lnh->lbtn", scaled, found.centre) - log_mass
    constant = found.log_harmonic_mass[:, None, None] - log_mass
    followed, constant = (np.median(np.asarray(array), axis=(1, 2)) for array in (followed, constant))
    assert constant.min() < -60
    assert followed.min() > -3
