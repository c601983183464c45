"""Images from every source come out alike, and bad ones end in an error that names them."""

import io
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from ntkprefix import images
from ntkprefix.images import load_images, normalise


def picture(colour, height=12, width=10):
    return Image.fromarray(np.full((height, width, 3), colour, np.uint8))


def arrays(**changes):
    random = np.random.default_rng(0)
    content = {
        "x_train": random.integers(0, 256, (6, 10, 8, 3), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": random.integers(0, 256, (3, 10, 8, 3), np.uint8),
        "y_test": np.array([2, 1, 0]),
        "class_names": np.array(["a", "b", "c"]),
    }
    return {name: array for name, array in (content | changes).items() if array is not None}


def npz(folder, **changes):
    path = folder / "set.npz"
    np.savez(path, **arrays(**changes))
    return path


def classes(folder, counts):
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(40 * label + index).save(folder / name / f"{index}.png")
    return folder


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


def test_npz(tmp_path):
    data = load_images(npz(tmp_path), size=8)
    assert data.x_train.shape == (6, 8, 8, 3)
    assert data.class_names == ("a", "b", "c")
    assert data.name == "set"
    # Shorter side 8 already: the crop takes one row off above and below.
    np.testing.assert_array_equal(data.x_train, arrays()["x_train"][:, 1:9])


def test_npz_grey_and_without_names(tmp_path):
    grey = arrays()["x_train"][..., 0]
    data = load_images(npz(tmp_path, x_train=grey, x_test=grey[:3, ..., None], class_names=None), size=8)
    np.testing.assert_array_equal(data.x_train, np.repeat(grey[:, 1:9, :, None], 3, axis=3))
    np.testing.assert_array_equal(data.x_test, data.x_train[:3])
    assert data.class_names == ("0", "1", "2")


def test_folder_is_split(tmp_path):
    data = load_images(classes(tmp_path, {"cat": 10, "dog": 5}), size=6, test_share=0.2)
    assert data.x_train.shape == (12, 6, 6, 3)
    assert sorted(data.y_test) == [0, 0, 1]
    assert data.class_names == ("cat", "dog")
    colours = np.concatenate([data.x_train, data.x_test])[:, 0, 0, 0]
    assert sorted(colours) == [*range(10), *range(40, 45)]


def test_folder_with_its_own_split(tmp_path):
    classes(tmp_path / "train", {"cat": 2, "dog": 3, "eel": 1})
    classes(tmp_path / "test", {"cat": 1, "eel": 2})
    data = load_images(tmp_path, size=6)
    assert data.y_train.tolist() == [0, 0, 1, 1, 1, 2]
    assert data.y_test.tolist() == [0, 2, 2]


def test_modes_and_rotation(tmp_path):
    folder = classes(tmp_path, {"a": 2})
    Image.new("RGBA", (9, 9), (10, 20, 30, 255)).save(folder / "a" / "0.png")
    Image.new("P", (9, 9)).save(folder / "a" / "1.png")
    turned = Image.new("RGB", (8, 16))
    turned.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(folder / "a" / "2.jpg", exif=exif, quality=95)
    data = load_images(folder, size=8, test_share=0.34)
    found = np.concatenate([data.x_train, data.x_test]).astype(int)
    assert any((image == (10, 20, 30)).all() for image in found)
    # White moved to the lower half; the centre crop keeps 4 rows of each.
    assert any(image[0].max() < 9 and image[-1].min() > 246 for image in found)


def test_normalise_inside_a_jitted_step():
    batch = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    expected = (batch / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    out = jax.jit(normalise)(jnp.asarray(batch))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(normalise(jnp.asarray(batch[0])), expected[0], atol=1e-5)


@pytest.mark.parametrize(("name", "count", "kinds"), [("clothing", 760, 10), ("cifar100", 5000, 100)])
def test_real_files(name, count, kinds):
    path = SHARED / "data" / name / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no {name}.npz beside the checkout")
    data = load_images(path, size=28)
    assert data.x_train.shape == (count, 28, 28, 3)
    assert len(data.class_names) == kinds == len(set(data.y_test.tolist()))


OBJECTS = np.array([{}, [], 1, 2, 3, 4], dtype=object)
IMAGES = arrays()["x_train"]
NPZ_ERRORS = {
    "objects": ({"y_train": OBJECTS}, ValueError, "Object arrays are not read"),
    "missing": ({"y_test": None, "x_test": None}, ValueError, "x_test, y_test not found"),
    "float images": ({"x_train": IMAGES / 255}, TypeError, "x_train as uint8 from 0 to 255, got float64"),
    "float labels": ({"y_test": np.zeros(3)}, TypeError, "y_test as integers, got float64"),
    "channels first": ({"x_test": IMAGES[:3].transpose(0, 3, 1, 2)}, ValueError, r"got shape \[3, 3, 10, 8\]"),
    "no images": ({"x_test": IMAGES[:0], "y_test": np.zeros(0, int)}, ValueError, r"got shape \[0, 10, 8, 3\]"),
    "counts": ({"y_train": np.zeros(5, int)}, ValueError, r"expected 6 labels in y_train, got shape \[5\]"),
    "negative": ({"y_test": np.array([0, -1, 0])}, ValueError, "labels from 0 in y_test, got -1"),
    "range": ({"y_test": np.array([0, 3, 0])}, ValueError, "labels below 3, the number of class_names, got 3"),
}


@pytest.mark.parametrize("case", NPZ_ERRORS)
def test_npz_errors(case, tmp_path):
    changes, kind, message = NPZ_ERRORS[case]
    path = npz(tmp_path, **changes)
    with pytest.raises(kind, match=message) as error:
        load_images(path, size=8)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_damaged_npz(keep, tmp_path):
    path = npz(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_images(path, size=8)


def test_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_LARGEST_BYTES", 100_000)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(200_000))
    assert path.stat().st_size < 1000
    with pytest.raises(ValueError, match=r"x_train\.npy takes 200,000 bytes, at most 100,000") as error:
        load_images(path, size=8)
    assert str(path) in str(error.value)


def test_a_header_that_promises_too_much(tmp_path):
    path = npz(tmp_path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**6, 64, 3)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_images(path, size=8)


def test_result_too_large(tmp_path):
    with pytest.raises(ValueError, match="Choose a smaller size or fewer images"):
        load_images(npz(tmp_path), size=20_000)


def test_huge_image(tmp_path, monkeypatch):
    folder = classes(tmp_path, {"a": 4})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"0.png: expected an image of at most 100 pixels"):
        load_images(folder, size=8)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_unreadable_image(content, tmp_path):
    bad = classes(tmp_path, {"a": 4}) / "a" / "2.png"
    bad.write_bytes(bad.read_bytes()[:45] if content is None else content)
    with pytest.raises(ValueError, match=re.escape(f"{bad}: expected an image")):
        load_images(tmp_path, size=8)


FOLDER_ERRORS = {
    "empty": ({}, "found no folders"),
    "no images": ({"a": 0, "b": 0}, "found none"),
    "one image of a class": ({"a": 4, "b": 1}, r"test part of the split, got none of \['b'\]"),
}


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_folder_errors(case, tmp_path):
    counts, message = FOLDER_ERRORS[case]
    with pytest.raises(ValueError, match=message) as error:
        load_images(classes(tmp_path, counts), size=8)
    assert str(tmp_path) in str(error.value)


def test_test_folder_with_another_class(tmp_path):
    classes(tmp_path / "train", {"cat": 1})
    classes(tmp_path / "test", {"cow": 1})
    with pytest.raises(ValueError, match=r"got also \['cow'\]"):
        load_images(tmp_path, size=8)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_size(size, unchecked):
    with pytest.raises(ValueError, match="positive number of pixels"):
        load_images("digits", size=size)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_test_share(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        load_images("digits", size=8, test_share=share)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.npz: expected 'digits', a .npz file or a folder"):
        load_images(tmp_path / "absent.npz", size=8)


def test_normalise_takes_bytes(unchecked):
    with pytest.raises(TypeError, match="expected uint8 from 0 to 255, got float32"):
        normalise(jnp.zeros((1, 2, 2, 3)))
