"""`.npz` files come out as they are, and bad ones end in an error that names them."""

import io
import os
import re
import zipfile

import numpy as np
import pytest
from image_sets import arrays, npz
from places import SHARED

from ntkprefix.images import archives, load_images


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


def test_numbers_that_no_image_has_are_no_classes(tmp_path):
    train, test = np.array([5, 1, 9, 5, 1, 9], np.uint8), np.array([9, 9, 1])
    data = load_images(npz(tmp_path, y_train=train, y_test=test, class_names=None), size=8)
    assert data.class_names == ("1", "5", "9")
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([1, 0, 2, 1, 0, 2], [2, 2, 0])
    assert data.y_train.dtype == data.y_test.dtype == np.int32


def test_names_that_no_image_has_stay(tmp_path):
    labels = {"y_train": np.array([0, 2, 0, 2, 0, 2]), "y_test": np.array([2, 0, 0])}
    data = load_images(npz(tmp_path, **labels), size=8)
    assert (data.class_names, data.y_train.tolist()) == (("a", "b", "c"), [0, 2, 0, 2, 0, 2])


def test_narrow_arrays(tmp_path):
    data = load_images(npz(tmp_path, x_train=np.full((6, 1, 1), 7, np.uint8)), size=14)
    assert (data.x_train == 7).all()


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
    "float images": ({"x_train": IMAGES / 255}, ValueError, "x_train as uint8 from 0 to 255, got float64"),
    "float labels": ({"y_test": np.zeros(3)}, ValueError, "y_test as integers, got float64"),
    "channels first": ({"x_test": IMAGES[:3].transpose(0, 3, 1, 2)}, ValueError, r"got shape \[3, 3, 10, 8\]"),
    "no images": ({"x_test": IMAGES[:0], "y_test": np.zeros(0, int)}, ValueError, r"got shape \[0, 10, 8, 3\]"),
    "counts": ({"y_train": np.zeros(5, int)}, ValueError, r"expected 6 labels in y_train, got shape \[5\]"),
    "negative": ({"y_test": np.array([0, -1, 0])}, ValueError, "labels from 0 in y_test, got -1"),
    "boolean labels": ({"y_test": np.zeros(3, bool)}, ValueError, "y_test as integers, got bool"),
    "times": ({"y_test": np.zeros(3, "m8[s]")}, ValueError, "y_test as integers, got timedelta64"),
    "one image": ({"x_test": IMAGES[0]}, ValueError, "expected 10 labels in y_test"),
    "flat": ({"x_test": IMAGES[:3, :, 0, 0]}, ValueError, r"got shape \[3, 10\]"),
    "no pixels": ({"x_test": IMAGES[:3, :0]}, ValueError, r"got shape \[3, 0, 8, 3\]"),
    "labels in columns": ({"y_test": np.zeros((3, 1), int)}, ValueError, r"in y_test, got shape \[3, 1\]"),
    "huge label": (
        {"y_train": np.array([0, 1, 2, 0, 1, 2_000_000_000]), "class_names": None},
        ValueError,
        "at most 30,000 classes, got 2,000,000,001",
    ),
    "label beyond int64": ({"y_train": np.full(6, 2**64 - 1, np.uint64)}, ValueError, "got 18,446,744,073,709,551,616"),
    "many names": ({"class_names": np.arange(30_001).astype(str)}, ValueError, "at most 30,000 classes, got 30,001"),
    "only in test": (
        {"y_train": np.array([0, 1, 0, 0, 1, 1])},
        ValueError,
        r"training images of every class that has test images, got none of \['c'\]",
    ),
    "one class": (
        {"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)},
        ValueError,
        r"expected at least 2 classes of training images, got \['a'\] alone",
    ),
    "one number": (
        {"y_train": np.full(6, 7), "y_test": np.full(3, 7), "class_names": None},
        ValueError,
        r"expected at least 2 classes of training images, got \['7'\] alone",
    ),
    "repeated names": (
        {"class_names": np.array(["a", "b", "b"])},
        ValueError,
        r"class_names without repeats, got \['b'\] more than once",
    ),
    "number names": ({"class_names": np.arange(3)}, ValueError, "class_names as text, got int64"),
    "byte names": ({"class_names": np.array([b"a", b"b", b"c"])}, ValueError, r"class_names as text, got \|S1"),
    "one name": ({"class_names": np.array("abc")}, ValueError, r"class_names as one list, got shape \[\]"),
    "no character": (
        {"class_names": np.array([2**31 - 1, 98, 99], np.uint32).view("<U1")},
        ValueError,
        "class_names as text",
    ),
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


def test_a_pickle_is_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(ran),))

    with pytest.raises(ValueError, match="pickles, which can run code"):
        load_images(npz(tmp_path, class_names=np.array([Payload()], dtype=object)), size=8)
    assert not ran.exists()


def test_other_arrays_are_left_alone(tmp_path):
    data = load_images(npz(tmp_path, comment=np.array([{}], dtype=object)), size=8)
    assert len(data.x_train) == 6


@pytest.mark.parametrize("member", ["x_train", "x_train.npy"])
def test_a_member_that_is_no_array(member, tmp_path):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"text")
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected plain arrays")):
        load_images(path, size=8)


def test_a_plain_array_is_not_an_archive(tmp_path):
    np.save(tmp_path / "set.npy", np.zeros(3))
    path = (tmp_path / "set.npy").rename(tmp_path / "set.npz")
    with pytest.raises(ValueError, match=r"File is not a zip file"):
        load_images(path, size=8)


def test_no_flipped_byte_ends_in_another_error(tmp_path):
    """Wherever a file is damaged, it loads or the error names it; the checksums catch most."""
    path = npz(tmp_path)
    whole = path.read_bytes()
    messages = []
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            load_images(path, size=8)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 0.8 * len(whole) / 11
    assert all(str(path) in message for message in messages)


def test_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_BYTES", 100_000)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(200_000))
    assert path.stat().st_size < 1000
    with pytest.raises(ValueError, match=r"x_train take 200,000 bytes, at most 100,000") as error:
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
