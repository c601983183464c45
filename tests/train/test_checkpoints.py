"""A run that was stopped goes on to the same last bit; what cannot be gone on with is refused."""

import asyncio
import json
import logging
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix.train import Checkpoints, TrainConfig, checkpoints, loop, train

# Seen once here, and not again: it names no object, and its cause is not known.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")

X = np.linspace(-1, 1, 40, dtype=np.float32)
START = {"w": jnp.zeros(3), "b": {"c": jnp.ones(())}}
CONFIG = TrainConfig(epochs=3, batch_size=8, learning_rate=0.05, seed=5)
STEPS = 15


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """One that stands still but for the second that a checkpoint takes, so that none is due for the time of steps."""
    clock = SimpleNamespace(now=0.0)
    save = checkpoints.write_digests

    def slowly(*arguments):
        clock.now += 1
        save(*arguments)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(checkpoints, "write_digests", slowly)
    return clock


def loss(params, _, x):
    return jnp.mean((params["w"][0] * x + params["w"][1] * x**2 + params["b"]["c"] - jnp.cos(3 * x)) ** 2)


def run(folder, config=CONFIG, start=START, every=0, **options):
    return train(loss, start, None, (X,), config, checkpoints=Checkpoints(folder, every), **options)


def stop_at(step):
    def on_step(number, _):
        if number == step:
            raise KeyboardInterrupt

    return on_step


def same(a, b):
    np.testing.assert_array_equal(a.losses, b.losses)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


@pytest.mark.parametrize(("every", "stop", "again"), [(0, 7, 6), (0, 3, 1), (2, 14, 13)])
def test_goes_on_to_the_same_bits(tmp_path, every, stop, again):
    whole = train(loss, START, None, (X,), CONFIG)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", every=every, on_step=stop_at(stop))
    seen = []
    resumed = run(tmp_path / "run", every=every, on_step=lambda step, _: seen.append(step))
    same(resumed, whole)
    assert seen == list(range(again, STEPS + 1))


@pytest.mark.parametrize(("of_a_step", "again"), [(60, 10), (19, 10), (10, 9), (5, 7), (1, 1)])
def test_a_twentieth_of_the_time_is_for_checkpoints(tmp_path, clock, of_a_step, again):
    """They come after 19 s or more. A step is told, and takes its time here, behind the next."""
    config = TrainConfig(epochs=1, batch_size=2)

    def on_step(number, _):
        if number == 12:
            raise KeyboardInterrupt
        clock.now += of_a_step

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, on_step=on_step)
    seen = []
    run(tmp_path, config, on_step=lambda step, _: seen.append(step))
    assert seen[0] == again


def test_checkpoints_are_no_time_in_steps(tmp_path, clock):
    assert run(tmp_path, every=1, on_step=lambda *_: setattr(clock, "now", clock.now + 1)).seconds == STEPS - 1


def test_metrics_have_every_step_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", metrics=tmp_path / "m.jsonl", on_step=stop_at(9))
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')  # killed while writing
    resumed = run(tmp_path / "run", metrics=tmp_path / "m.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    np.testing.assert_array_equal(np.float32([line["loss"] for line in lines]), resumed.losses)


def test_the_best_parameters_outlive_a_stop(tmp_path):
    config = TrainConfig(**{**vars(CONFIG), "patience": 1})

    def by_hand():
        values = iter([2.0, 1.0, 3.0])
        return lambda _: next(values)

    whole = train(loss, START, None, (X,), config, validate=by_hand())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, validate=by_hand(), on_step=stop_at(12))
    resumed = run(tmp_path, config, validate=lambda _: 3.0)
    same(resumed, whole)
    assert list(resumed.validation) == [2, 1, 3]
    stopped = run(tmp_path, config, validate=lambda _: pytest.fail("it is over"))
    same(stopped, whole)


def test_at_most_two_checkpoints_are_kept(tmp_path):
    run(tmp_path, every=2)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [14, 15]


def test_another_run_is_refused(tmp_path):
    run(tmp_path)
    other = TrainConfig(**{**vars(CONFIG), "learning_rate": 0.1})
    with pytest.raises(ValueError, match=r"15: expected a checkpoint of this run, but learning_rate is 0.05 there and"):
        run(tmp_path, other)
    with pytest.raises(
        ValueError, match=r"but parameters is .*\[3\].* there and .*\[4\].* here. Choose another folder"
    ):
        run(tmp_path, start={**START, "w": jnp.zeros(4)})


FILES = ["history/metadata", "arrays/_METADATA", "arrays/manifest.ocdbt", "arrays/d/*", "digests.json"]


@pytest.mark.parametrize("what", FILES)
def test_a_damaged_checkpoint_is_named(tmp_path, what):
    run(tmp_path)
    (path, *_) = (tmp_path / "15").glob(what)
    path.write_bytes(path.read_bytes()[:1])
    with pytest.raises(ValueError, match=rf"{path}: expected .*Delete {tmp_path / '15'} to go on from the checkpoint"):
        run(tmp_path)
    path.unlink()
    if path.name != "digests.json":
        with pytest.raises(ValueError, match=f"{path}: expected the file that was written, found none. Delete"):
            run(tmp_path)


def test_a_file_whose_digest_is_lost_is_not_read(tmp_path):
    run(tmp_path)
    (tmp_path / "15" / "digests.json").write_text("{}")
    with pytest.raises(ValueError, match=r"15/.*: expected only files that were written down, found another\. Delete"):
        run(tmp_path)


@pytest.mark.parametrize("left", [("10", "15"), ("15",)], ids=["of two", "alone"])
def test_one_without_digests_is_made_again_and_never_read(tmp_path, left):
    """As it is left by a run that was killed before it wrote them."""
    whole = run(tmp_path)
    for path in tmp_path.glob("*/"):
        if path.name not in left:
            shutil.rmtree(path)
    (tmp_path / "15" / "digests.json").unlink()
    (path,) = (tmp_path / "15").glob(FILES[0])
    path.write_bytes(b"no checkpoint")
    before = None if len(left) == 1 else tmp_path / "10"
    assert Checkpoints(tmp_path).newest() == before
    same(run(tmp_path), whole)
    assert Checkpoints(tmp_path).newest() == tmp_path / "15"


def test_several_without_digests_are_nobodys_to_remove(tmp_path):
    run(tmp_path)
    for path in tmp_path.glob("*/digests.json"):
        path.unlink()
    with pytest.raises(ValueError, match=r"10: expected digests.json in a checkpoint, .* nor in 15. Copy them too"):
        run(tmp_path)
    assert (tmp_path / "15").is_dir()


def test_one_bit_of_the_numbers_is_noticed(tmp_path):
    run(tmp_path)
    path = max((tmp_path / "15" / "arrays").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: expected the file that was written, got another"):
        run(tmp_path)


@pytest.mark.parametrize("how", [KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("way", ["save", "restore"])
def test_an_interrupt_is_no_damage(tmp_path, monkeypatch, how, way):
    """Orbax turns it into an error."""

    def interrupted(*_, **__):
        try:
            raise how
        except BaseException as error:
            raise Exception("Encountered error while reading") from error

    if way == "restore":
        run(tmp_path)
    monkeypatch.setattr(checkpoints._Manager, way, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)


@pytest.mark.parametrize("way", ["save", "restore"])
def test_a_process_that_is_gone_is_no_damage(tmp_path, monkeypatch, way):
    def lost(*_, **__):
        raise jax.errors.JaxRuntimeError("Connection closed by peer")

    if way == "restore":
        run(tmp_path)
    monkeypatch.setattr(checkpoints._Manager, way, lost)
    with pytest.raises(jax.errors.JaxRuntimeError, match="closed by peer"):
        run(tmp_path)


def test_the_only_one_cannot_be_gone_on_from(tmp_path):
    run(tmp_path)
    shutil.rmtree(tmp_path / "10")
    path = next((tmp_path / "15" / "arrays").rglob("d/*"))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"Delete {tmp_path / '15'} to start afresh"):
        run(tmp_path)


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_step=stop_at(7))
    # what a run that was killed while writing leaves
    (tmp_path / "10.orbax-checkpoint-tmp-0").mkdir()
    same(run(tmp_path), train(loss, START, None, (X,), CONFIG))
    assert {path.name for path in tmp_path.iterdir()} == {"10", "15"}


def test_a_folder_named_like_a_checkpoint_is_left_alone(tmp_path):
    other = tmp_path / "run" / "2024"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("mine")
    told = rf"{other}: expected a training checkpoint, found another folder, with notes\.txt in it\. Choose"
    with pytest.raises(ValueError, match=told):
        run(tmp_path / "run")
    assert (other / "notes.txt").read_text() == "mine"


def test_a_file_named_like_a_checkpoint_is_none(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "7").write_text("")
    assert Checkpoints(tmp_path / "run").newest() is None


def test_a_diverging_loss_names_the_last_good_checkpoint(tmp_path):
    def explosive(params, _, x):
        return jnp.where(params["w"][0] > -0.2, jnp.sum(params["w"]), jnp.nan) + 0 * jnp.sum(x)

    kept = tmp_path / "run" / "3"  # that of step 5 is what the loss of step 6 is computed with
    message = rf"is nan at step 6\. .* in another folder: the last good checkpoint here is {kept}\."
    with pytest.raises(FloatingPointError, match=message):
        train(explosive, START, None, (X,), CONFIG, checkpoints=Checkpoints(tmp_path / "run", 3))


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50))
        # three and one parameters, and twice as many of Adam's with a count, and the best parameters: 4 bytes each
        with pytest.raises(
            OSError, match=r"0: cannot be written \(it takes 6.8e-05 MB, and there is room for 5e-05 MB"
        ):
            run(tmp_path)
    assert not list(tmp_path.iterdir())
    same(run(tmp_path), train(loss, START, None, (X,), CONFIG))


def test_threads_that_an_interrupt_leaves_say_nothing(capsys):
    """They find that nothing can be begun any more; what else they say is heard."""
    logger = logging.getLogger("absl")
    with pytest.raises(KeyboardInterrupt), checkpoints._quiet():
        raise KeyboardInterrupt
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        for told in ("cannot schedule new futures after interpreter shutdown", "something else"):
            try:
                raise RuntimeError(told)
            except RuntimeError:
                logger.exception("a thread failed")
    finally:
        logger.removeHandler(handler)
    shown = capsys.readouterr().err
    assert "something else" in shown
    assert "futures" not in shown
