import numpy as np
import pytest

from theory import make_data


@pytest.mark.parametrize("data", ["sphere", "digits"])
def test_inputs_have_unit_norm_and_differ(data):
    made = make_data(20, 6, 10, data=data)
    together = np.concatenate([made.x, made.x_test])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    distances = np.linalg.norm(together[:, None] - together[None], axis=2) + np.eye(30)
    assert distances.min() > 1e-3


def test_gaussian_inputs_have_variance_one_over_d():
    x = np.asarray(make_data(2000, 5, 1, data="gaussian").x)
    np.testing.assert_allclose(np.cov(x.T), np.eye(5) / 5, atol=0.03)


@pytest.mark.parametrize("targets", ["gaussian", "teacher"])
def test_targets_have_about_unit_norm(targets):
    y = 3 * np.asarray(make_data(500, 8, 1, targets=targets).y)
    np.testing.assert_allclose(y, make_data(500, 8, 1, targets=targets, target_scale=3.0).y, rtol=1e-5)
    assert 0.7 < np.sqrt(np.mean(np.sum((y / 3) ** 2, axis=1))) < 1.3


def test_teacher_is_a_function_of_the_input_alone():
    few, many = (make_data(n, 4, 16 - n, targets="teacher") for n in (3, 12))
    np.testing.assert_allclose(few.y, many.y[:3], rtol=1e-5)


def test_digit_labels_separate_classes():
    made = make_data(60, 10, 1, data="digits", targets="labels")
    y = np.asarray(made.y)
    assert len(np.unique(y.round(4), axis=0)) == 10
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("projection", ["pca", "random"])
def test_nearby_digits_share_a_class(projection):
    made = make_data(400, 12, 1, data="digits", projection=projection, targets="labels")
    x, label = np.asarray(made.x), np.asarray(made.y).argmax(axis=1)
    nearest = (x @ x.T - 2 * np.eye(400)).argmax(axis=1)
    assert np.mean(label == label[nearest]) > 0.6


def test_the_seed_decides():
    first, again, other = (make_data(3, 2, 1, seed=seed).x for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
