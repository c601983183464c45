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


_NO_B = (
    r"test part of the split, got none of \['b'\]\. Add images of it, or split the set yourself, into train/<class>/ "
    r"and test/<class>/ folders \(`load_images` can also hold out another share, test_share\)"
)


@pytest.mark.parametrize("parts", [("train", "val"), ("Train", "Validation"), ("TRAIN", "Test"), ("train", "VAL")])
def test_other_names_of_the_split(parts, tmp_path):
    for part, counts in zip(parts, ({"cat": 2, "dog": 3}, {"dog": 1, "cat": 1}), strict=True):
        classes(tmp_path / part, counts)
    classes(tmp_path, {"__MACOSX": 1, ".hidden": 1})
    data = load_images(tmp_path, size=6)
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 0, 1, 1, 1], [0, 1])
    assert data.notes == f"the folder's own split, {parts[0]} and {parts[1]}"


def test_imagenets_test_images_have_no_classes(tmp_path):
    for part in ("train", "val"):
        classes(tmp_path / part, {"cat": 2, "dog": 1, "__MACOSX": 1, ".hidden": 1})
    classes(tmp_path, {"test": 3})
    data = load_images(tmp_path, size=6)
    assert (len(data.x_test), data.class_names, data.notes[-13:]) == (3, ("cat", "dog"), "train and val")
    classes(tmp_path / "test", {"dog": 1})
    assert load_images(tmp_path, size=6).y_test.tolist() == [1]


def test_of_two_train_folders_the_lower_case_one_counts(tmp_path):
    for part, count in (("Train", 1), ("train", 2), ("test", 1)):
        if (tmp_path / part).exists():
            pytest.skip("names of folders have no case here")
        classes(tmp_path / part, {"cat": count, "dog": count})
    assert len(load_images(tmp_path, size=6).x_train) == 4


def test_what_macos_adds_is_no_class(tmp_path):
    data = load_images(classes(tmp_path / "set", {"cat": 5, "dog": 5, "__MACOSX": 5}), size=6)
    assert data.class_names == ("cat", "dog")
    npz(tmp_path)
    (tmp_path / "set").rename(tmp_path / "__MACOSX")
    assert len(load_images(tmp_path, size=8).x_train) == 6


FOLDER_ERRORS = {
    "empty": ({}, "found no folders"),
    "no images": ({"a": 0, "b": 0}, "found none"),
    "parts of another name": (
        {"train/a": 2, "held/a": 2},
        r"They lie in train/<class>/ and test/<class>/ \(or val/<class>/\), or in",
    ),
    "one class": (
        {"a": 4},
        r"expected at least 2 classes of training images, got \['a'\] alone. Add images of another",
    ),
    "one class to train on": ({"train/a": 4, "train/b": 0, "test/a": 2}, r"at least 2 classes .* got \['a'\] alone"),
    "one class of a split": ({"train/a": 4, "val/a": 2}, "at least 2 classes"),
    "tests without classes": ({"train/a": 2, "train/b": 2, "Test": 2}, "Test: expected one folder of images per class"),
    "many classes": (dict.fromkeys(map(str, range(7)), 1), r"at most 6 classes, got 7"),
    "one image of a class": ({"a": 4, "b": 1}, _NO_B),
}


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_folder_errors(case, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "MOST_CLASSES", 6)
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
    classes(tmp_path / "train", {"cat": 1, "dog": 1})
    classes(tmp_path / "test", {"cow": 1})
    with pytest.raises(ValueError, match=r"got also \['cow'\]"):
        load_images(tmp_path, size=8)


def test_a_class_that_is_only_tested(tmp_path):
    classes(tmp_path / "train", {"cat": 1, "cow": 0, "dog": 1})
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


@pytest.mark.parametrize("where", ["", "train", "test"])
def test_a_link_to_another_class_is_no_class(where, tmp_path):
    for part in ("train", "test") if where else ("",):
        classes(tmp_path / part, {"a": 4, "b": 4})
    if where == "test":
        classes(tmp_path / "train", {"c": 4})
    target = {"": "a", "train": "../train/a", "test": "../train/a"}[where]
    (tmp_path / where / "c").symlink_to(target)
    with pytest.raises(
        ValueError, match=r"a folder of its own for every class, got \['a', 'c'\], which are one folder"
    ):
        load_images(tmp_path, size=8)


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
