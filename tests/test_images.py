"""Images from every source come out alike, and bad ones end in an error that names them."""

import io
import os
import re
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from ntkprefix import images
from ntkprefix.images import load_images, normalise, stratified


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


def opened(image, folder, size=8, **options):
    """The first of two equal images of a class, loaded from PNG files (or others, by `suffix`)."""
    suffix = options.pop("suffix", "png")
    (folder / "a").mkdir()
    for name in ("0", "1"):
        image.save(folder / "a" / f"{name}.{suffix}", **options)
    return load_images(folder, size=size, test_share=0.5).x_train[0]


def test_sixteen_bits_become_eight(tmp_path):
    deep = Image.fromarray(np.full((8, 8), 0x8040, np.uint16))
    assert (opened(deep, tmp_path) == 0x80).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused(mode, tmp_path):
    with pytest.raises(ValueError, match=r"\d\.tif: .*save it with 8 or 16 bits a channel"):
        opened(Image.new(mode, (8, 8), 1000), tmp_path, suffix="tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(mode, tmp_path):
    image = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    image.paste((9, 9, 9, 255), (0, 4, 8, 8))
    out = opened(image.convert(mode), tmp_path).astype(int)
    np.testing.assert_allclose(out[:4], 255)
    np.testing.assert_allclose(out[4:], 9)


@pytest.mark.parametrize(("suffix", "kind"), [("gif", "GIF"), ("webp", "WEBP"), ("png", "PNG"), ("jpg", "MPO")])
def test_of_several_frames_the_first_counts(suffix, kind, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"quality": 100, "lossless": True} if suffix in ("webp", "jpg") else {}
    out = opened(frames[0], tmp_path, suffix=suffix, format=kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_allclose(out.astype(int), np.broadcast_to([255, 0, 0], out.shape), atol=1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1)])
def test_small_and_narrow_images(shape, tmp_path):
    assert (opened(picture(7, *shape), tmp_path, size=14) == 7).all()


def test_narrow_arrays(tmp_path):
    data = load_images(npz(tmp_path, x_train=np.full((6, 1, 1), 7, np.uint8)), size=14)
    assert (data.x_train == 7).all()


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
    "boolean labels": ({"y_test": np.zeros(3, bool)}, TypeError, "y_test as integers, got bool"),
    "times": ({"y_test": np.zeros(3, "m8[s]")}, TypeError, "y_test as integers, got timedelta64"),
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
    "repeated names": (
        {"class_names": np.array(["a", "b", "b"])},
        ValueError,
        r"class_names without repeats, got \['b'\] more than once",
    ),
    "number names": ({"class_names": np.arange(3)}, TypeError, "class_names as text, got int64"),
    "byte names": ({"class_names": np.array([b"a", b"b", b"c"])}, TypeError, r"class_names as text, got \|S1"),
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
        except (TypeError, ValueError) as error:
            messages.append(str(error))
    assert len(messages) > 0.8 * len(whole) / 11
    assert all(str(path) in message for message in messages)


def test_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_LARGEST_BYTES", 100_000)
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


def link(path, target):
    path.unlink()
    path.symlink_to(target)


def replaced_by(path, make):
    path.unlink()
    make(path)


BAD_FILES = {
    "directory": lambda path: replaced_by(path, Path.mkdir),
    "pipe": lambda path: replaced_by(path, os.mkfifo),  # opening it would wait for ever
    "loop": lambda path: link(path, path.name),
    "link to nothing": lambda path: link(path, "absent.png"),
    "PostScript": lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_what_is_no_image_file(case, tmp_path):
    bad = classes(tmp_path, {"a": 4}) / "a" / "2.png"
    BAD_FILES[case](bad)
    with pytest.raises(ValueError, match=re.escape(f"{bad}: expected an image")):
        load_images(tmp_path, size=8)


def test_a_file_that_may_not_be_read(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    bad = classes(tmp_path, {"a": 4}) / "a" / "2.png"
    bad.chmod(0)
    with pytest.raises(ValueError, match=re.escape(f"{bad}: expected an image")):
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


FOLDER_ERRORS = {
    "empty": ({}, "found no folders"),
    "no images": ({"a": 0, "b": 0}, "found none"),
    "parts of another name": ({"train/a": 2, "val/a": 2}, r"They lie in train/<class>/ and test/<class>/, or in"),
    "many classes": (dict.fromkeys(map(str, range(7)), 1), r"at most 6 classes, got 7"),
    "one image of a class": ({"a": 4, "b": 1}, r"test part of the split, got none of \['b'\]"),
}


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_folder_errors(case, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MOST_CLASSES", 6)
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
