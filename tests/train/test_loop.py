"""The training loop: it learns, repeats itself, compiles once, and stops where it should."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ntkprefix.models import depth
from ntkprefix.train import TrainConfig, train
from ntkprefix.train import step as step_module

X = np.linspace(-1, 1, 40, dtype=np.float32)


def squares(params, slope, x, y):
    return jnp.mean((params["w"] * x * slope + params["b"] - y) ** 2)


START = {"w": jnp.zeros(()), "b": jnp.zeros(())}


def test_equals_a_plain_loop(relaxed):
    config = TrainConfig(epochs=3, batch_size=8, learning_rate=0.05, seed=4)
    result = train(squares, START, 1.0, (X, 2 * X + 1), config)
    steps = 3 * 5
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.05, round(0.1 * steps), steps)
    # the loop's n-th update takes the schedule's value at n, not n - 1: no update is wasted on a step size of zero
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda n: schedule(n + 1), weight_decay=1e-4))
    params, state, losses = START, optimiser.init(START), []
    random = np.random.default_rng(4)
    for _ in range(3):
        order = random.permutation(40)
        for rows in order.reshape(5, 8):
            loss, gradient = jax.value_and_grad(squares)(params, 1.0, X[rows], (2 * X + 1)[rows])
            updates, state = optimiser.update(gradient, state, params)
            params, losses = optax.apply_updates(params, updates), [*losses, float(loss)]
    np.testing.assert_allclose(result.losses, losses, rtol=1e-4)
    np.testing.assert_allclose(result.params["w"], params["w"], rtol=1e-4)


def test_factors_make_the_steps_of_a_branch_smaller():
    # Two steps, of which the schedule's last has size zero; the first of Adam is as large as the step size, whatever
    # the gradient.
    config = TrainConfig(epochs=1, batch_size=20, learning_rate=0.1)
    whole = train(squares, START, 1.0, (X, 2 * X + 1), config).params
    parts = train(squares, START, 1.0, (X, 2 * X + 1), config, factors={"w": 1.0, "b": 0.25}).params
    half = train(squares, START, 1.0, (X, 2 * X + 1), config, factors=0.5).params
    np.testing.assert_allclose([parts["w"], parts["b"]], [whole["w"], 0.25 * whole["b"]], rtol=1e-6)
    np.testing.assert_allclose([half["w"], half["b"]], [0.5 * whole["w"], 0.5 * whole["b"]], rtol=1e-6)
    assert whole["w"] > 0.04


def test_same_seed_same_bits_and_the_callers_parameters_live_on():
    config = TrainConfig(epochs=2, batch_size=8)
    first, second = (train(squares, START, 1.0, (X, X), config) for _ in range(2))
    np.testing.assert_array_equal(first.losses, second.losses)
    other = train(squares, START, 1.0, (X, X), TrainConfig(epochs=2, batch_size=8, seed=1))
    assert (first.losses != other.losses).any()
    assert START["w"] == 0


@pytest.mark.parametrize("start", [START, START | {"w": jnp.full((), 0.0)}, {"w": 0.0, "b": 0.0}])
def test_another_step_size_does_not_compile_again(start, compiled):
    train(squares, start, 1.0, (X, X), TrainConfig(epochs=1, batch_size=8))
    train(squares, start, 1.0, (X, X), TrainConfig(epochs=2, batch_size=8, learning_rate=0.5))
    assert compiled.count("step") == 1


def test_a_diverging_loss_stops_with_its_step():
    def explosive(params, _, x):
        return jnp.where(params["w"] == 0, 1.0 + params["w"], jnp.nan) + 0 * jnp.sum(x)

    with pytest.raises(FloatingPointError, match="loss is nan at step 2"):
        train(explosive, {"w": jnp.zeros(())}, None, (X,), TrainConfig(epochs=1, batch_size=8))


LAYERS = nnx.jit(lambda: depth.stack(lambda rngs: nnx.Linear(4, 4, rngs=rngs), 5, rngs=nnx.Rngs(0)))()


def deep(params, frozen, x):
    """Five layers, each of which adds what trains to the rows of sixteen."""

    def layer(block, x, shift, _):
        return block(x) + shift * x, None

    out, _ = depth.scan(LAYERS, layer, x[:, None] + jnp.zeros((1, 4)), layers=5, prefixes=params["shift"])
    return jnp.mean(out) / params["scale"]


def layers(**changes):
    return {"shift": jnp.zeros(5), "scale": jnp.ones(())} | changes


DIVERGED = {
    "a layer": (layers(shift=jnp.zeros(5).at[3].set(jnp.nan)), "leave layer 3, in 8 rows of the batch. Try a smaller"),
    "the first": (layers(shift=jnp.full(5, jnp.inf)), "leave layer 0, in 8 rows of the batch. Try a smaller learning"),
    "behind them": (layers(scale=jnp.full((), jnp.nan)), "; all that leaves the model's layers is finite. Try a small"),
}


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("case", DIVERGED)
def test_a_diverging_loss_names_the_layer(case, micro_batches):
    start, message = DIVERGED[case]
    with pytest.raises(FloatingPointError, match=f"the loss is (nan|-?inf) at step 1.*{message}"):
        train(deep, start, None, (X + 2,), TrainConfig(epochs=1, batch_size=8, micro_batches=micro_batches))


def test_rows_whose_numbers_overflow_are_counted():
    rows = X.copy()
    rows[[3, 30]] = np.nan
    with pytest.raises(FloatingPointError, match="leave layer 0, in 2 rows of the batch"):
        train(deep, layers(), None, (rows,), TrainConfig(epochs=1, batch_size=40))


def test_layers_that_another_transformation_runs_are_not_named():
    start, _ = DIVERGED["a layer"]
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1\. Try"):
        train(jax.checkpoint(deep, static_argnums=1), start, None, (X,), TrainConfig(epochs=1, batch_size=8))


def test_a_gradient_that_is_not_finite_stops_also_at_the_last_step():
    def rooted(params, _, x):
        return jnp.sqrt(jnp.abs(params["w"] * jnp.mean(x)))

    with pytest.raises(FloatingPointError, match=r"not finite at step 1, where the loss is 0, in \['w'\]\. Try"):
        train(rooted, {"w": jnp.zeros(())}, None, (X + 2,), TrainConfig(epochs=1, batch_size=40))


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_it_names_parameters_and_layers(micro_batches):
    def rooted(params, _, x):
        early, one, rest = jnp.sqrt(params["a"][:3]), jnp.sqrt(params["b"][1]), jnp.sqrt(params["c"])
        return jnp.mean(x) + jnp.sum(early) + one + rest + jnp.sum(params["d"])

    start = {"a": jnp.zeros(5), "b": jnp.zeros(3), "c": jnp.zeros(()), "d": jnp.ones(2), "e": jnp.zeros((2, 0))}
    told = r"at step 1, where the loss is [\d.]+, in \['a'\]\[0\.\.2\], \['b'\]\[1\], \['c'\]\. Try"
    with pytest.raises(FloatingPointError, match=told):
        train(rooted, start, None, (X + 2,), TrainConfig(epochs=1, batch_size=40, micro_batches=micro_batches))
    told = r"in \['a'\]\[0\.\.2\], \['aa'\]\[0\], \['b'\]\[1\], 1 more\. Try"
    with pytest.raises(FloatingPointError, match=told):
        train(
            lambda params, _, x: rooted(params, _, x) + jnp.sqrt(params["aa"][0]),
            start | {"aa": jnp.zeros(1)},
            None,
            (X + 2,),
            TrainConfig(epochs=1, batch_size=40),
        )


def test_a_gradient_whose_norm_alone_overflows_says_so():
    with pytest.raises(FloatingPointError, match=r"where the loss is 0, though each number of it is\. Try"):
        train(lambda w, _, x: 1e30 * jnp.sum(w) * jnp.mean(x), jnp.zeros(2), None, (X + 2,), TrainConfig(epochs=1))


def _within_one(params):
    return jax.tree.map(lambda leaf: jnp.clip(leaf, -1, 1), params)


def test_a_projection_ends_every_step():
    config = TrainConfig(epochs=20, batch_size=8, learning_rate=0.5)
    assert train(squares, START, 1.0, (X, 3 * X + 2), config).params["w"] > 2
    result = train(squares, START, 1.0, (X, 3 * X + 2), config, project=_within_one)
    assert float(result.params["w"]) == float(result.params["b"]) == 1.0


def test_progress_is_reported_every_step():
    seen = []
    train(squares, START, 1.0, (X, X), TrainConfig(batch_size=8, epochs=1), on_step=lambda *args: seen.append(args))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]


def test_losses_are_told_in_order_with_those_of_a_run_without_telling():
    seen = []
    config = TrainConfig(batch_size=8, epochs=2)
    told = train(squares, START, 1.0, (X, X), config, on_step=lambda *args: seen.append(args))
    np.testing.assert_array_equal([loss for _, loss in seen], told.losses)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
        ("cosine", [0.5, 1, *(0.5 + 0.5 * np.cos(np.pi * np.arange(1, 7) / 6))]),
    ],
)
def test_step_sizes_rise_and_then_follow_the_schedule(schedule, expected):
    config = TrainConfig(epochs=2, batch_size=10, learning_rate=1.0, warmup=0.25, schedule=schedule)
    np.testing.assert_allclose(config.step_sizes(40), expected, atol=1e-6)


def weighted(params, slope, x, y):
    """Squared errors over the rows of positive x alone: a mean of what counts, as that of labelled tokens."""
    counts = (x > 0).astype(x.dtype)
    return jnp.sum(counts * (params["w"] * x * slope + params["b"] - y) ** 2), jnp.sum(counts)


@pytest.mark.parametrize("loss", [squares, weighted])
def test_micro_batches_change_nothing(loss):
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=0.1)
    whole = train(loss, START, 1.0, (X, 2 * X + 1), config)
    parts = train(loss, START, 1.0, (X, 2 * X + 1), TrainConfig(**{**vars(config), "micro_batches": 4}))
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-5)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-5)


def test_a_weighted_loss_is_the_mean_over_what_counts():
    result = train(weighted, START, 1.0, (X, 2 * X + 1), TrainConfig(epochs=1, batch_size=40))
    np.testing.assert_allclose(result.losses, [np.mean((2 * X[X > 0] + 1) ** 2)], rtol=1e-5)
    nothing = train(weighted, START, 1.0, (-np.abs(X), X), TrainConfig(epochs=1, batch_size=40))
    assert nothing.losses == [0.0]
    assert nothing.params["w"] == 0


def test_micro_batches_take_less_memory():
    def loss(params, _, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ params) @ params) ** 2)

    x, params = np.ones((512, 64), np.float32), jnp.ones((64, 64))
    transformation = step_module.optimiser(0.0, 1.0)

    def memory(parts):
        arguments = (params, transformation.init(params), None, np.float32(0.1), 1.0, (x,))
        compiled = step_module.step.lower(loss, transformation, None, parts, *arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(8) < memory(1) / 2


def test_early_stopping_keeps_the_best_parameters():
    config = TrainConfig(epochs=9, batch_size=8, learning_rate=0.1, patience=2, schedule="constant")
    seen = []

    def validate(params):
        seen.append({name: float(value) for name, value in params.items()})
        return [3.0, 1.0, 2.0, 1.0, 1.5][len(seen) - 1]

    result = train(squares, START, 1.0, (X, 2 * X + 1), config, validate=validate)
    assert list(result.validation) == [3, 1, 2, 1]
    assert len(result.losses) == 4 * 5
    assert {name: float(value) for name, value in result.params.items()} == seen[1]
    assert seen[1] != seen[3]


def test_validation_without_patience_runs_to_the_end():
    config, values = TrainConfig(epochs=3, batch_size=8), iter([1.0, 2.0, 3.0])
    result = train(squares, START, 1.0, (X, X), config, validate=lambda _: next(values))
    assert len(result.losses) == 15


def test_a_diverging_validation_stops():
    config = TrainConfig(epochs=3, batch_size=8)
    with pytest.raises(FloatingPointError, match="validation loss is nan after 5 steps"):
        train(squares, START, 1.0, (X, X), config, validate=lambda _: float("nan"))


def test_metrics_are_json_lines(tmp_path):
    config = TrainConfig(epochs=2, batch_size=20, learning_rate=0.25)
    result = train(squares, START, 1.0, (X, X), config, metrics=tmp_path / "run" / "m.jsonl", validate=lambda _: 2.0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "m.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["epoch"] for line in steps] == [0.5, 1, 1.5, 2]
    np.testing.assert_array_equal(np.float32([line["loss"] for line in steps]), result.losses)
    np.testing.assert_array_equal(np.float32([line["step_size"] for line in steps]), config.step_sizes(40))
    assert [line for line in lines if "validation" in line] == [
        {"step": 2, "epoch": 1, "validation": 2.0},
        {"step": 4, "epoch": 2, "validation": 2.0},
    ]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (lambda: TrainConfig(epochs=0), ValueError, "epochs of at least 1, got 0"),
        (lambda: TrainConfig(epochs=10**17), ValueError, "epochs of at most 16,777,216, got 100,000,000,000,000,000"),
        (lambda: TrainConfig(epochs=2**22).steps(100), ValueError, "at most 16,777,216 steps, got 25,165,824, which"),
        (lambda: TrainConfig(batch_size=2.5), TypeError, "an integer batch_size, got float"),
        (lambda: TrainConfig(learning_rate=0.0), ValueError, "learning_rate above 0"),
        (lambda: TrainConfig(learning_rate=1e-320), ValueError, "above 0, of at least 1.2e-38, got 1e-320"),
        (lambda: TrainConfig(learning_rate=float("nan")), ValueError, "a finite number as learning_rate, got nan"),
        (lambda: TrainConfig(learning_rate=1e300), ValueError, r"learning_rate, got 1e\+300, more than float32 holds"),
        (lambda: TrainConfig(seed=2**32), ValueError, r"a seed below 2\^32, got 4294967296"),
        (lambda: TrainConfig(warmup=1.5), ValueError, "warmup share within 0..1"),
        (lambda: TrainConfig(micro_batches=3), ValueError, "micro_batches that divide the batch_size, got 3 and 16"),
        (lambda: TrainConfig(micro_batches=0), ValueError, "micro_batches of at least 1, got 0"),
        (lambda: TrainConfig(schedule="step"), ValueError, "unknown schedule 'step'; expected one of cosine, linear"),
        (lambda: TrainConfig(patience=-1), ValueError, "patience of at least 0, got -1"),
        (lambda: TrainConfig(clip=float("inf")), ValueError, "a finite number of at least 0 as clip, got inf"),
        (lambda: train(squares, START, 1.0, (X, X), TrainConfig(patience=1)), ValueError, "Pass `validate`"),
        (lambda: train(squares, START, 1.0, (X[:3], X[:3]), TrainConfig()), ValueError, "got 3 rows"),
        (lambda: train(squares, START, 1.0, (X, X[:3]), TrainConfig()), ValueError, r"one length, got \[40, 3\]"),
    ],
)
def test_errors(wrong, kind, message):
    with pytest.raises(kind, match=message):
        wrong()
