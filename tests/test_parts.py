"""Parts of a long computation: kept as they were, made once, and never taken for another's."""

from contextlib import suppress

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ntkprefix import TokenPrefix
from ntkprefix.parts import Parts, parts_folder
from ntkprefix.runs import environment


def everything():
    return {
        "prefix": TokenPrefix(jnp.ones((2, 1, 3)), jnp.zeros((2, 1, 3)), jnp.full((2, 1), -jnp.inf)),
        "scalar": jnp.asarray(3, jnp.int32),
        "narrow": jnp.asarray([1.5, -2.0], jnp.bfloat16),
        "turned": jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3).T,
        "none": None,
    }


def assert_same(one, other):
    assert type(one["prefix"]) is type(other["prefix"])
    for name in ("keys", "values", "log_weights"):
        np.testing.assert_array_equal(getattr(one["prefix"], name), getattr(other["prefix"], name))
    for name in ("scalar", "narrow", "turned"):
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])


def test_a_part_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return everything()

    parts = Parts.of(tmp_path, run="one")
    assert_same(parts("all", make), everything())
    (file,) = tmp_path.rglob("*.safetensors")
    before = file.stat().st_mtime_ns
    # The second time it is only traced.
    assert_same(parts("all", make), everything())
    assert (len(made), file.stat().st_mtime_ns) == (2, before)
    assert Parts.of(tmp_path, run="two").find("all", everything()) is None


def test_without_a_folder_nothing_is_kept():
    parts = Parts.of(None, run="one")
    parts.put("all", everything())
    assert parts.find("all", everything()) is None
    assert parts.beside("checkpoints") is None
    assert_same(parts("all", everything), everything())


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "0 arrays in place of 1"),
        ({"0": np.zeros(2, np.float32), "1": np.zeros(2, np.float32)}, "2 arrays in place of 1"),
        ({"0": np.zeros(3, np.float32)}, r"its array 0 is float32 \[3\] in place of float32 \[2\]"),
        ({"0": np.zeros(2, np.int32)}, r"its array 0 is int32 \[2\] in place of float32 \[2\]"),
    ],
)
def test_a_file_of_other_arrays(tmp_path, arrays, said):
    parts = Parts(tmp_path)
    save_file(arrays, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=rf"part.safetensors: .*{said}. Delete it"):
        parts("part", lambda: jnp.zeros(2))


def test_other_code_has_other_parts(tmp_path, monkeypatch):
    first = Parts.of(tmp_path, run="one")
    assert first == Parts.of(tmp_path, run="one")
    there = environment()
    for name in ("commit", "packages", "device"):
        monkeypatch.setattr("ntkprefix.parts.environment", lambda name=name: there | {name: "another"})
        assert Parts.of(tmp_path, run="one") != first


def test_a_folder_is_removed_when_the_run_has_ended(tmp_path):
    folder = tmp_path / "deep" / "run.parts"
    with pytest.raises(KeyError), parts_folder(folder):
        raise KeyError
    assert not folder.exists()
    with suppress(KeyError), parts_folder(folder) as kept:
        Parts.of(kept, run="one").put("all", everything())
        raise KeyError
    with parts_folder(folder) as kept:
        assert Parts.of(kept, run="one").find("all", everything()) is not None
        with pytest.raises(BlockingIOError), parts_folder(folder):
            pass
    assert not folder.exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    folder = tmp_path / "run.parts"
    (folder / "mine").mkdir(parents=True)
    with (
        pytest.raises(OSError, match=r"run.parts: expected parts .* it holds 'mine'. Move that away"),
        parts_folder(folder),
    ):
        pass
    assert (folder / "mine").is_dir()
    link = tmp_path / "link.parts"
    link.symlink_to(folder)
    with pytest.raises(OSError, match=r"link.parts: .* it is a link. Choose"), parts_folder(link):
        pass


def test_what_comes_in_while_it_runs_is_left_alone(tmp_path):
    folder = tmp_path / "run.parts"
    with parts_folder(folder) as kept:
        Parts.of(kept, run="one").put("all", everything())
        (folder / "mine").write_text("")
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_folder_in_place_of_a_part(tmp_path):
    (tmp_path / "part.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"part.safetensors: expected a finished part"):
        Parts(tmp_path).find("part", jnp.zeros(2))


def test_a_file_that_is_cut_short(tmp_path):
    parts = Parts(tmp_path)
    parts.put("part", jnp.zeros(2))
    file = tmp_path / "part.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"part.safetensors: expected a finished part"):
        parts.find("part", jnp.zeros(2))
