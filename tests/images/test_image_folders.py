"""Folders of images come out by class, and bad ones end in an error that names them."""

import os

import numpy as np
import pytest
from image_sets import classes, npz

from ntkprefix.images import checks, load_images


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


FOLDER_ERRORS = {
    "empty": ({}, "found no folders"),
    "no images": ({"a": 0, "b": 0}, "found none"),
    "parts of another name": ({"train/a": 2, "val/a": 2}, r"They lie in train/<class>/ and test/<class>/, or in"),
    "many classes": (dict.fromkeys(map(str, range(7)), 1), r"at most 6 classes, got 7"),
    "one image of a class": ({"a": 4, "b": 1}, r"test part of the split, got none of \['b'\]"),
}


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_folder_errors(case, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "_MOST_CLASSES", 6)
    counts, message = FOLDER_ERRORS[case]
    with pytest.raises(ValueError, match=message) as error:
        load_images(classes(tmp_path, counts), size=8)
    assert str(tmp_path) in str(error.value)


def test_the_folder_of_an_archive(tmp_path):
    path = npz(tmp_path)
    found, expected = load_images(tmp_path, size=8), load_images(path, size=8)
    np.testing.assert_array_equal(found.x_train, expected.x_train)
    assert found.name == expected.name
    path.with_name("other.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"found no folders. Give one of the files in it, other\.npz perhaps"):
        load_images(tmp_path, size=8)


def test_test_folder_with_another_class(tmp_path):
    classes(tmp_path / "train", {"cat": 1})
    classes(tmp_path / "test", {"cow": 1})
    with pytest.raises(ValueError, match=r"got also \['cow'\]"):
        load_images(tmp_path, size=8)


def test_a_class_that_is_only_tested(tmp_path):
    classes(tmp_path / "train", {"cat": 1, "cow": 0})
    classes(tmp_path / "test", {"cow": 1})
    with pytest.raises(ValueError, match=r"of every class that has test images, got none of \['cow'\]"):
        load_images(tmp_path, size=8)


def test_links_to_folders_are_classes_and_not_followed_further(tmp_path):
    classes(tmp_path / "real", {"a": 4, "b": 4})
    (tmp_path / "real" / "a" / "loop").symlink_to("..")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "linked" / "b").symlink_to("../real/b")
    data = load_images(tmp_path / "linked", size=8)
    assert (len(data.x_train), len(data.x_test), data.class_names) == (6, 2, ("a", "b"))


def test_names_can_be_shown_anywhere(tmp_path):
    """Bytes that are no text, and what moves a terminal's cursor, are spelt out."""
    (tmp_path / "set").mkdir()
    names = {os.fsdecode(b"caf\xe9"): 5, "a\x1b[2Jb": 5, "naïve": 5}
    data = load_images(classes(tmp_path / "set\n", names), size=8)
    assert data.class_names == ("a\\x1b[2Jb", "caf\\udce9", "naïve")
    assert data.name == "set\\n"


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_test_share(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        load_images("digits", size=8, test_share=share)
