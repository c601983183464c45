"""Digits, splits and what can be asked for."""

import numpy as np
import pytest

from ntkprefix.images import load_images, stratified


def test_digits():
    data = load_images("digits", size=14)
    again, other = load_images("digits", size=14), load_images("digits", size=14, seed=1)
    assert data.x_train.dtype == np.uint8
    assert data.y_train.dtype == np.int32
    assert data.x_train.max() > 200  # the range of 0 to 16 is stretched
    np.testing.assert_array_equal(data.x_test, again.x_test)
    assert (data.y_test != other.y_test).any()
    shares = np.bincount(data.y_test) / np.bincount(np.concatenate([data.y_train, data.y_test]))
    np.testing.assert_allclose(shares, 797 / 1797, atol=0.01)


def test_digits_are_split_without_overlap():
    from sklearn.datasets import load_digits

    data = load_images("digits", size=8)
    grey = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    found = np.concatenate([data.x_train, data.x_test])[..., 0].reshape(-1, 64)
    assert sorted(map(bytes, found)) == sorted(map(bytes, grey))


def test_stratified_is_in_proportion_random_and_in_order():
    labels = np.random.default_rng(0).permutation(np.repeat([3, 5, 8], [100, 50, 10]))
    for count in (0, 1, 7, 64, 160):
        chosen = stratified(labels, count, seed=0)
        assert chosen.sum() == count
        for label, size in ((3, 100), (5, 50), (8, 10)):
            assert abs(chosen[labels == label].sum() - count * size / 160) < 1
    first, again, other = (stratified(labels, 64, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("count", [-1, 4])
def test_stratified_count(count):
    with pytest.raises(ValueError, match=f"a count from 0 to 3, the number of labels, got {count}"):
        stratified(np.array([0, 1, 1]), count, seed=0)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_size(size, unchecked):
    with pytest.raises(ValueError, match="positive number of pixels"):
        load_images("digits", size=size)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.npz: expected 'digits', a .npz file or a folder"):
        load_images(tmp_path / "absent.npz", size=8)
