"""Images prepared for a model equal those of PyTorch's transformers, whatever their sizes and colours."""

import json

import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from PIL import Image
from places import GOLDEN

from ntkprefix.images import Preprocess, normalise
from ntkprefix.models import load_preprocess

with np.load(GOLDEN / "preprocess.npz") as file:
    GOLDEN_FILE = {name: file[name] for name in file.files}
IMAGES = {name.removeprefix("image/"): array for name, array in GOLDEN_FILE.items() if name.startswith("image/")}
CONFIGS = {
    name.removeprefix("config/"): json.loads(str(text))
    for name, text in GOLDEN_FILE.items()
    if name.startswith("config/")
}
CASES = [tuple(name.removeprefix("out/").split("/", 1)) for name in GOLDEN_FILE if name.startswith("out/")]


def from_config(folder, **config):
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return load_preprocess(folder)


@pytest.mark.skipif(
    PIL.__version__.split(".")[0] != str(GOLDEN_FILE["pillow"]).split(".")[0],
    reason="Pillow 13 resizes otherwise than Pillow 12, in transformers as here; the file was made with 13",
)
@pytest.mark.parametrize(("config", "name"), CASES)
def test_equals_transformers(config, name, tmp_path):
    ours = from_config(tmp_path, **CONFIGS[config])([Image.fromarray(IMAGES[name])])[0]
    expected = GOLDEN_FILE[f"out/{config}/{name}"]
    stride = 7 if config == "dinov2" else 1
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[::stride, ::stride], expected, atol=1e-6, rtol=1e-6)


def test_the_defaults_are_dinov2s(tmp_path):
    assert from_config(tmp_path, **CONFIGS["dinov2"]) == Preprocess() == load_preprocess()
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_preprocess(tmp_path) == Preprocess()


def test_files_arrays_and_images_are_the_same(tmp_path):
    prepare = Preprocess(shortest_edge=20, crop=(14, 21))
    paths = []
    for name, array in IMAGES.items():
        paths.append(tmp_path / f"{name.replace('/', ' ')}.png")
        Image.fromarray(array).save(paths[-1])
    opened = [Image.open(path) for path in paths]
    out = prepare(opened)
    assert out.shape == (len(IMAGES), 14, 21, 3)
    np.testing.assert_array_equal(prepare(paths), out)
    np.testing.assert_array_equal(prepare([str(path) for path in paths]), out)
    kept = [index for index, name in enumerate(IMAGES) if name != "LA"]
    arrays = [array if name != "L" else array[..., None] for name, array in IMAGES.items() if name != "LA"]
    np.testing.assert_array_equal(prepare(arrays), out[kept])


def test_files_are_turned_upright(tmp_path):
    image = Image.fromarray(IMAGES["RGB/portrait"])
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    image.save(tmp_path / "turned.png", exif=exif)
    prepare = Preprocess(shortest_edge=20, crop=None)
    expected = prepare([image.transpose(Image.Transpose.ROTATE_270)])
    np.testing.assert_array_equal(prepare([tmp_path / "turned.png"]), expected)


def test_without_resizing_it_is_normalise():
    images = np.stack([IMAGES["RGB/square"]] * 2)
    ours = Preprocess(shortest_edge=None, crop=None)(images)
    np.testing.assert_allclose(ours, normalise(jnp.asarray(images)), atol=1e-6)


def test_the_crop_is_the_centre_and_black_beyond():
    """By hand: odd borders leave the spare row above and the spare column on the left when black is added."""
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1).repeat(3, axis=-1)
    plain = {"shortest_edge": None, "scale": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1)}
    smaller = Preprocess(**plain, crop=(2, 1))([image])[0, ..., 0]
    np.testing.assert_array_equal(smaller, [[2], [6]])
    larger = Preprocess(**plain, crop=(6, 7))([image])[0, ..., 0]
    expected = np.zeros((6, 7))
    expected[2:5, 2:6] = image[..., 0]
    np.testing.assert_array_equal(larger, expected)


def prepared(*images, **options):
    return lambda: Preprocess(**options)(list(images))


ERRORS = {
    "none": (prepared(), ValueError, "images: expected at least one, got none"),
    "floats": (prepared(np.zeros((4, 4, 3))), TypeError, "expected uint8 from 0 to 255, got float64. Are they normal"),
    "colours": (prepared(np.zeros((4, 4, 2), np.uint8)), ValueError, r"with 1, 3 or 4 colours, got \(4, 4, 2\)"),
    "channels first": (prepared(np.zeros((3, 9, 9), np.uint8)), ValueError, r"\[h, w, C\] with 1, 3 or 4 colours"),
    "empty": (prepared(np.zeros((0, 4, 3), np.uint8)), ValueError, r"got \(0, 4, 3\)"),
    "a number": (prepared(3), TypeError, "expected paths, Pillow's images or uint8 arrays, got int"),
    "32 bits": (prepared(Image.new("F", (4, 4))), ValueError, "expected 8 bits a colour, got Pillow's mode F"),
    "16 bits": (prepared(Image.new("I;16", (4, 4))), ValueError, "got Pillow's mode I;16. Give the file's path"),
    "no file": (prepared("no.png"), ValueError, "no.png: expected an image .*it is not a file"),
    "a thread": (
        prepared(np.zeros((1, 9999), np.uint8)),
        ValueError,
        "resizing 1 x 9999 pixels makes 256 x 2559744, more",
    ),
    "sizes": (
        prepared(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8), crop=None),
        ValueError,
        r"expected one size without a crop, got \[\(256, 320\), \(320, 256\)\]. Give crop",
    ),
    "edge 0": (prepared(shortest_edge=0), ValueError, "shortest_edge to be an integer of at least 1, got 0"),
    "half a crop": (prepared(crop=(2, 2.5)), ValueError, "crop's width to be an integer of at least 1, got 2.5"),
    "a huge edge": (
        prepared(shortest_edge=10**5),
        ValueError,
        "expected at most 89,478,485 pixels, got 10,000,000,000",
    ),
    "a huge crop": (prepared(crop=(10**6, 10**6)), ValueError, "expected at most 89,478,485 pixels, got 1,000,"),
    "resample": (prepared(resample="best"), ValueError, "resample among nearest, lanczos, bilinear, .* got 'best'"),
    "no deviation": (prepared(std=(1.0, 0.0, 1.0)), ValueError, "no std of 0"),
    "NaN": (prepared(mean=(0.0, float("nan"), 0.0)), ValueError, "expected finite scale, mean and std"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    wrong, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        wrong()


FILES = {
    "other kind": (
        {"image_processor_type": "CLIPImageProcessor"},
        "image_processor_type to be one of BitImageProcessor",
    ),
    "square": ({"size": {"height": 9, "width": 9}}, "expected height = None, got 9"),
    "longest": ({"size": {"shortest_edge": 9, "longest_edge": 12}}, "expected longest_edge = None, got 12"),
    "no size": ({"size": None}, "expected the key 'shortest_edge', found none"),
    "size in words": ({"size": "9"}, "shortest_edge to be an integer from 1 .* got '9'"),
    "no crop": ({"crop_size": {"height": 9}}, "expected the key 'width', found none"),
    "grey": ({"do_convert_rgb": False}, "expected do_convert_rgb = True, got False"),
    "padded": ({"do_pad": True}, "expected do_pad = False, got True"),
    "resample": ({"resample": 9}, "resample to be a number from 0 to 4, got 9"),
    "resample in words": ({"resample": "bicubic"}, "resample to be a number from 0 to 4, got 'bicubic'"),
    "one mean": ({"image_mean": 0.5}, r"image_mean to be a list of three numbers, got 0\.5"),
    "mean in words": ({"image_mean": ["a", 0, 0]}, "image_mean to be a list of three numbers"),
    "no deviation": ({"image_std": [1, 0, 1]}, "not the configuration .* no std of 0"),
    "factor": ({"rescale_factor": "x"}, "rescale_factor to be a finite number above 0, got 'x'"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", FILES)
def test_files_that_ask_for_something_else(case, tmp_path):
    change, message = FILES[case]
    with pytest.raises(ValueError, match=rf"^{tmp_path}/preprocessor_config\.json: .*{message}"):
        from_config(tmp_path, **CONFIGS["dinov2"] | change)


def test_damaged_and_absent_files(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: expected a JSON object"):
        load_preprocess(tmp_path / "preprocessor_config.json")
    with pytest.raises(FileNotFoundError, match="expected a file or folder"):
        load_preprocess(tmp_path / "absent")
