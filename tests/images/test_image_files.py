"""Every kind of image comes out upright, flat and 8 bits deep; what is no image is named."""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_sets import classes, picture
from PIL import Image

from ntkprefix.images import load_images, normalise


def test_modes_and_rotation(tmp_path):
    folder = classes(tmp_path, {"a": 2, "b": 3})
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
    """One of four equal images in two classes, loaded from PNG files (or others, by `suffix`)."""
    suffix = options.pop("suffix", "png")
    for name in ("a", "b"):
        (folder / name).mkdir()
        for index in range(2):
            image.save(folder / name / f"{index}.{suffix}", **options)
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


def test_huge_image(tmp_path, monkeypatch):
    folder = classes(tmp_path, {"a": 4, "b": 4})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"0.png: expected an image of at most 100 pixels"):
        load_images(folder, size=8)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_unreadable_image(content, tmp_path):
    bad = classes(tmp_path, {"a": 4, "b": 4}) / "a" / "2.png"
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
    bad = classes(tmp_path, {"a": 4, "b": 4}) / "a" / "2.png"
    BAD_FILES[case](bad)
    with pytest.raises(ValueError, match=re.escape(f"{bad}: expected an image")):
        load_images(tmp_path, size=8)


def test_a_file_that_may_not_be_read(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    bad = classes(tmp_path, {"a": 4, "b": 4}) / "a" / "2.png"
    bad.chmod(0)
    with pytest.raises(ValueError, match=re.escape(f"{bad}: expected an image")):
        load_images(tmp_path, size=8)


def test_normalise_inside_a_jitted_step():
    batch = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    expected = (batch / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    out = jax.jit(normalise)(jnp.asarray(batch))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(normalise(jnp.asarray(batch[0])), expected[0], atol=1e-5)


def test_normalise_takes_bytes(unchecked):
    with pytest.raises(TypeError, match="expected uint8 from 0 to 255, got float32"):
        normalise(jnp.zeros((1, 2, 2, 3)))
