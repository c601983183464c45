"""One table of every way to call the theory wrongly, and what it says."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import theory
from theory import (
    Config,
    as_matrix,
    finite_ntk,
    infinite_ntk,
    init_stylized,
    make_data,
    model_ntk,
    predict_infinite,
    predict_linearised,
    stylized_model,
    train,
    verify,
)

KEY, EYE, ONE = jax.random.key(0), jnp.eye(2), jnp.ones
W, A, X = ONE((4, 2)), jnp.array([1.0, 1.0, -1.0, -1.0]), jnp.eye(2)
BAD_COVARIANCE = {
    "has a negative eigenvalue": (
        [[1.0, 2.0], [2.0, 1.0]],
        "a positive semi-definite covariance, got one with the eig",
    ),
    "is negative": ([[-1.0, 0.0], [0.0, -1.0]], "a positive semi-definite covariance"),
    "is not symmetric": ([[1.0, 0.5], [0.0, 1.0]], "a finite, symmetric covariance, got one that is not"),
    "is not finite": ([[1.0, 0.0], [0.0, np.nan]], "a finite, symmetric covariance"),
    "has another size": (np.eye(3), r"a covariance of shape \(2, 2\), got \(3, 3\)"),
}


def training(**changes):
    return lambda: train(**({"W": W, "a": A, "x": X, "y": X, "steps": 3, "step_size": 0.1} | changes))


def predicting(**changes):
    return lambda: predict_infinite(**({"x": X, "y": X, "steps": 3, "step_size": 0.01} | changes))


def of_model(outputs=None, params=X, X1=X, **more):
    return lambda: model_ntk(outputs or (lambda params, x: x @ params), params, X1, **more)


def linearised(**changes):
    arguments = {"kernel": ONE((2, 2, 1, 1)), "residual": ONE((2, 1)), "steps": 3, "step_size": 0.1} | changes
    return lambda: predict_linearised(**arguments)


def start(*changes, **more):
    arguments = [KEY, 4, 2]
    arguments[: len(changes)] = changes
    return lambda: init_stylized(*arguments, **more)


def data(**changes):
    return lambda: make_data(**({"n": 4, "d": 2} | changes))


def config(**settings):
    return lambda: Config(**settings)


ERRORS = {
    "make_data": {
        "n in words": (data(n="a"), TypeError, "an integer n, got str"),
        "no inputs": (data(n=0), ValueError, "n of at least 1, got 0"),
        "no width": (data(d=0), ValueError, "d of at least 1, got 0"),
        "held-out inputs below none": (data(n_test=-1), ValueError, "n_test of at least 0, got -1"),
        "a seed that is no integer": (data(seed=0.5), TypeError, "an integer seed, got float"),
        "a large seed": (data(seed=2**32), ValueError, "a seed below 2.32, got 4294967296"),
        "a scale in words": (data(target_scale="a"), TypeError, "a number as target_scale, got 'a'"),
        "an infinite scale": (data(target_scale=np.inf), ValueError, "a finite number as target_scale, got inf"),
        "other inputs": (
            data(data="cube"),
            ValueError,
            "unknown data 'cube'; expected one of sphere, gaussian, digits",
        ),
        "other targets": (data(targets="odd"), ValueError, "unknown targets 'odd'; expected one of gaussian, teacher"),
        "another projection": (data(projection="flat"), ValueError, "unknown projection 'flat'; expected one of pca"),
        "labels without digits": (data(targets="labels"), ValueError, "data='digits' .* got data='sphere' and d=2"),
        "labels in one dimension": (data(targets="labels", data="digits", d=1), ValueError, "d of at least 2 .* d=1"),
        "wide digits": (data(data="digits", d=65), ValueError, "of at most 64 dimensions, got 36 digits, d=65"),
        "many digits": (data(data="digits", n=1797), ValueError, "at most 1797 digits, .* got 1829 digits, d=2"),
    },
    "init_stylized": {
        "no key": (start(0), TypeError, r"one random key, jax.random.key\(0\), got 0"),
        "several keys": (start(jax.random.split(KEY)), TypeError, "one random key, .* got an array of key<fry>"),
        "M in words": (start(KEY, "a"), TypeError, "an integer M, got str"),
        "M that is no integer": (start(KEY, 4.0), TypeError, "an integer M, got float"),
        "odd M": (start(KEY, 3), ValueError, "an even M of at least 2, because tokens come in pairs, got 3. Use 4"),
        "no tokens": (start(KEY, 0), ValueError, "an even M of at least 2, .* got 0. Use 2"),
        "d in words": (start(KEY, 4, "a"), TypeError, "an integer d, got str"),
        "no width": (start(KEY, 4, 0), ValueError, "d of at least 1, got 0"),
        "sigma in words": (start(KEY, 4, 2, "a"), TypeError, "a number as sigma, got 'a'"),
        "sigma below 0": (start(KEY, 4, 2, -1.0), ValueError, "a positive, finite sigma, got -1.0"),
        "two variances": (start(KEY, 4, 2, 2.0, covariance=EYE), ValueError, "sigma or a covariance, got both"),
    },
    "stylized_model": {
        "integers": (
            lambda: stylized_model(W, A.astype(int), X),
            TypeError,
            "a to be an array of .*, got int32. Use ast",
        ),
        "a list": (lambda: stylized_model(W, A, [[1.0]]), TypeError, "x to be an array of .*, got list. Use jax.numpy"),
        "two dtypes": (
            lambda: stylized_model(W, A, X.astype(jnp.float16)),
            TypeError,
            "one dtype, got W float32, a float32, x float16. Cast with `astype`",
        ),
        "shapes of the prefix": (
            lambda: stylized_model(W, A[1:], X),
            ValueError,
            r"W \[M, d\] and a \[M\], got shapes",
        ),
        "width": (lambda: stylized_model(W, A, jnp.eye(3)), ValueError, r"x \[n, d\] with the d = 2 of W, got shape"),
        "no tokens": (lambda: stylized_model(W[:0], A[:0], X), ValueError, r"W with at least one .* shape \(0, 2\)"),
    },
    "finite_ntk": {
        "integers": (lambda: finite_ntk(W, A, X.astype(int)), TypeError, "X1 to be an array of .*, got int32"),
        "integers second": (lambda: finite_ntk(W, A, X, X.astype(int)), TypeError, "X2 to be an array of .* int32"),
        "one input": (
            lambda: finite_ntk(W, A, ONE(2)),
            ValueError,
            r"X1 \[n, d\] with the d = 2 of W, got shape \(2,\)",
        ),
        "width": (lambda: finite_ntk(W, A, X, jnp.eye(3)), ValueError, r"X2 \[n, d\] with the d = 2 of W, got shape"),
        "shapes of the prefix": (lambda: finite_ntk(W[0], A, X), ValueError, r"got shapes \(2,\) and \(4,\)"),
        "no tokens": (lambda: finite_ntk(W[:0], A[:0], X), ValueError, r"W with at least one .* shape \(0, 2\)"),
        "no inputs": (lambda: finite_ntk(W, A, X[:0]), ValueError, r"X1 with at least one .* shape \(0, 2\)"),
        "chunk between two": (lambda: finite_ntk(W, A, X, chunk=2.5), TypeError, "an integer chunk, got float"),
        "no chunk": (lambda: finite_ntk(W, A, X, chunk=0), ValueError, "chunk of at least 1, got 0"),
    },
    "infinite_ntk": {
        "integers": (lambda: infinite_ntk(jnp.eye(3, dtype=int)), TypeError, "X1 to be an array of .*, got int32"),
        "NumPy's integers": (lambda: infinite_ntk(np.eye(3, dtype=int)), TypeError, "X1 to be an array of .* int64"),
        "a list": (lambda: infinite_ntk([[1.0, 0.0]]), TypeError, "X1 to be an array of .*, got list"),
        "one input": (lambda: infinite_ntk(ONE(3)), ValueError, r"X1 \[n, d\] of one width d, got shapes X1 \(3,\)"),
        "two widths": (lambda: infinite_ntk(jnp.eye(3), EYE), ValueError, r"got shapes X1 \(3, 3\), X2 \(2, 2\)"),
        "two dtypes": (lambda: infinite_ntk(X, X.astype(jnp.bfloat16)), TypeError, "one dtype, got X1 float32, X2 bfl"),
        "no inputs": (lambda: infinite_ntk(X[:0]), ValueError, r"X1 with at least one .* shape \(0, 2\)"),
        "sigma in words": (lambda: infinite_ntk(X, sigma="a"), TypeError, "a number as sigma, got 'a'"),
        "several sigmas": (
            lambda: infinite_ntk(X, sigma=ONE(3)),
            TypeError,
            "a number as sigma, got an array of float",
        ),
        "no variance": (lambda: infinite_ntk(X, sigma=0.0), ValueError, "a positive, finite sigma, got 0.0"),
        "two variances": (lambda: infinite_ntk(X, sigma=2.0, covariance=EYE), ValueError, "got both: sigma=2.0. Leave"),
        "covariance of integers": (
            lambda: infinite_ntk(X, covariance=EYE.astype(int)),
            TypeError,
            "covariance to be an",
        ),
        "a list for covariance": (
            lambda: infinite_ntk(X, covariance=[[1.0]]),
            TypeError,
            "covariance to be .* got list",
        ),
    },
    "as_matrix": {
        "a list": (lambda: as_matrix([1.0]), TypeError, "H to be an array of .*, got list"),
        "integers": (lambda: as_matrix(ONE((1, 1, 2, 2), int)), TypeError, "H to be an array of .*, got int32"),
        "rank": (lambda: as_matrix(EYE), ValueError, r"a kernel \[n1, n2, d, d\], got shape \(2, 2\)"),
        "blocks": (
            lambda: as_matrix(ONE((1, 1, 2, 3))),
            ValueError,
            r"a kernel \[n1, n2, d, d\], got .*\(1, 1, 2, 3\)",
        ),
    },
    "train": {
        "integers": (training(y=X.astype(int)), TypeError, "y to be an array of .*, got int32"),
        "two dtypes": (training(y=X.astype(jnp.float16)), TypeError, "one dtype, got W float32, .* y float16"),
        "shapes of the prefix": (training(a=ONE(3)), ValueError, r"got shapes \(4, 2\) and \(3,\)"),
        "width": (training(x=ONE((2, 3))), ValueError, r"x \[n, d\] with the d = 2 of W, got shape \(2, 3\)"),
        "targets": (training(y=ONE((3, 2))), ValueError, r"x and y of one shape \[n, d\], got \(2, 2\) and \(3, 2\)"),
        "no inputs": (training(x=X[:0], y=X[:0]), ValueError, r"x with at least one .* shape \(0, 2\)"),
        "steps between two": (training(steps=3.5), TypeError, "an integer steps, got float"),
        "steps below none": (training(steps=-1), ValueError, "steps of at least 0, got -1"),
        "a step size in words": (training(step_size="a"), TypeError, "a number as step_size, got 'a'"),
        "no step size": (training(step_size=0.0), ValueError, "a positive, finite step_size, got 0.0"),
        "a step size below 0": (training(step_size=-0.1), ValueError, "a positive, finite step_size, got -0.1"),
        "a step size that is none": (training(step_size=np.nan), ValueError, "a positive, finite step_size, got nan"),
        "an unknown optimizer": (training(optimizer="lion"), ValueError, "among gd, momentum, adam, sgd, got 'lion'"),
        "no optimizer": (training(optimizer=3), TypeError, "a name or what makes an optimizer .* optax.adam, got int"),
        "no key": (training(batch_size=2), ValueError, "batch_size within 1..2 and a key, got 2, key absent"),
        "a number for a key": (training(batch_size=2, key=0), TypeError, r"one random key, .* got 0"),
        "large batches": (training(batch_size=9, key=KEY), ValueError, "within 1..2 and a key, got 9, key given"),
        "empty batches": (training(batch_size=0, key=KEY), ValueError, "batch_size of at least 1, got 0"),
        "batches between two": (training(batch_size=1.5, key=KEY), TypeError, "an integer batch_size, got float"),
    },
    "model_ntk": {
        "a number among the parameters": (of_model(params={"Z": 1}), TypeError, "arrays of floating-point numbers"),
        "integer parameters": (of_model(params=jnp.ones(2, int)), TypeError, "arrays of floating-point numbers"),
        "no parameters": (of_model(params={}), ValueError, "at least one parameter, got none"),
        "no inputs": (of_model(X1=X[:0]), ValueError, "one number of rows, at least 1, got 0"),
        "no arrays": (of_model(X1=()), ValueError, "one number of rows, at least 1, got none"),
        "a number as inputs": (of_model(X1=3.0), ValueError, "one number of rows, at least 1, got 0"),
        "two numbers of rows": (of_model(X1=(X, W)), ValueError, "one number of rows, at least 1, got 2, 4"),
        "second inputs of none": (of_model(X2=X[:0]), ValueError, "one number of rows, at least 1, got 0"),
        "no memory": (of_model(memory=0), ValueError, "memory of at least 1, got 0"),
        "memory between two": (of_model(memory=1.5), TypeError, "an integer memory, got float"),
        "one output for all": (of_model(lambda params, _: params.sum()), ValueError, r"outputs \[n, o\] for n = 2 inp"),
        "outputs of other inputs": (of_model(lambda p, x: (x @ p)[:1]), ValueError, r"outputs \[n, o\] for n = 2 inp"),
    },
    "predict_linearised": {
        "integers": (linearised(residual=jnp.ones((2, 1), int)), TypeError, "residual to be an array of floating"),
        "another residual": (linearised(residual=ONE((3, 1))), ValueError, r"a kernel \[n, n, o, o\], a residual"),
        "a residual [n]": (linearised(residual=ONE(2)), ValueError, r"a kernel \[n, n, o, o\], a residual"),
        "another cross kernel": (
            linearised(cross=ONE((2, 3, 1, 1))),
            ValueError,
            r"a cross kernel \[n_test, n, o, o\]",
        ),
        "steps below none": (linearised(steps=-1), ValueError, "steps of at least 0, got -1"),
        "no step size": (linearised(step_size=0.0), ValueError, "a step_size above 0, got 0.0"),
        "a step size in words": (linearised(step_size="a"), TypeError, "a number as step_size, got 'a'"),
    },
    "predict_infinite": {
        "integers": (predicting(x=X.astype(int)), TypeError, "x to be an array of .*, got int32"),
        "held-out integers": (predicting(x_test=X.astype(int)), TypeError, "x_test to be an array of .*, got int32"),
        "targets": (predicting(y=ONE((3, 2))), ValueError, r"x and y of one shape \[n, d\], got \(2, 2\) and \(3, 2\)"),
        "one input": (predicting(x=ONE(2), y=ONE(2)), ValueError, r"x, y \[n, d\] of one width d, got shapes x \(2,\)"),
        "width": (predicting(x_test=jnp.eye(3)), ValueError, r"x, y, x_test \[n, d\] .* x_test \(3, 3\)"),
        "not finite": (predicting(y=X / 0), ValueError, "finite numbers in y, got NaN or an infinity"),
        "traced": (
            lambda: jax.jit(lambda x: predict_infinite(x, x, steps=3))(X),
            TypeError,
            "x with its values, got a",
        ),
        "steps between two": (predicting(steps=3.5), TypeError, "an integer steps, got float"),
        "steps below none": (predicting(steps=-1), ValueError, "steps of at least 0, got -1"),
        "a step size in words": (predicting(step_size="a"), TypeError, "a number as step_size, got 'a'"),
        "no step size": (predicting(step_size=None), ValueError, r"a step_size within \(0, 2/lambda_max.* got None"),
        "sigma in words": (predicting(sigma="a"), TypeError, "a number as sigma, got 'a'"),
        "inputs twice": (predicting(x=ONE((2, 2))), ValueError, "pairwise distinct inputs, .* Remove repeated ones"),
        "large inputs": (predicting(x=1e3 * X), ValueError, "inputs whose H. is finite, .* Use a smaller sigma or"),
    },
    "verify": {
        "no Config": (lambda: verify({"quick": True}), TypeError, r"a Config, got dict. Use Config\(quick=True\)"),
        "plots in words": (lambda: verify(Config(), plots="no"), TypeError, "True or False as plots, got 'no'"),
        "sigma": (config(sigma=-1.0), ValueError, "sigma above 0 and finite, got -1.0"),
        "no step size": (config(step_size=np.nan), ValueError, "step_size within 1e-6..1e6, got nan"),
        "an infinite step size": (config(step_size=np.inf), ValueError, "step_size within 1e-6..1e6, got inf"),
        "a large scale": (config(target_scale=1e25), ValueError, "target_scale within 1e-6..1e6, got 1e"),
        "many steps": (config(steps=10**9), ValueError, "steps of at most 100000, got 1000000000"),
        "a large sigma": (config(sigma=1e300), ValueError, "sigma of at most 1e.06, got 1e.300"),
        "a large sigma in the search": (
            config(scaling_sigma=(0.5, 1e300)),
            ValueError,
            r"scaling_sigma of at most 1e.06, got \(0.5, 1e.300\)",
        ),
        "a large seed": (config(seed=2**32), ValueError, "a seed below 2.32, got 4294967296"),
        "a seed below 0": (config(seed=-1), ValueError, "seed of at least 0, got -1"),
        "no seeds": (config(seeds=0), ValueError, "seeds of at least 5, .* got 0"),
        "no steps": (config(steps=0), ValueError, "steps above 0 and finite, got 0"),
        "few seeds": (config(seeds=4), ValueError, "seeds of at least 5, .* got 4"),
        "few lengths": (config(lengths=(4, 8)), ValueError, "lengths to be at least 3 even prefix lengths"),
        "a length twice": (config(lengths=(4, 8, 8)), ValueError, "increasing, got"),
        "odd lengths": (
            config(kernel_lengths=(3, 4, 5)),
            ValueError,
            "kernel_lengths to be at least 3 even prefix len",
        ),
        "long lengths": (config(lengths=(2, 4, 2**30)), ValueError, "at most 2.24 = 16777216 tokens, got .*1073741824"),
        "one case": (
            config(scaling_n=(4,)),
            ValueError,
            "scaling_n to be at least 2 positive numbers, increasing, got",
        ),
        "a case that is none": (config(scaling_sigma=(0.5, np.nan)), ValueError, "scaling_sigma to be at least 2 pos"),
        "an unknown optimizer": (
            config(optimizer="lion"),
            ValueError,
            "optimizer to be one of gd, momentum, adam, sgd",
        ),
        "other inputs": (config(data="cube"), ValueError, "data to be one of sphere, gaussian, digits, got 'cube'"),
        "labels without digits": (config(targets="labels"), ValueError, "data 'digits' for targets='labels', got 'sph"),
        "n between two": (config(n=2.5), TypeError, "n to be a whole number, got 2.5"),
        "n that is a flag": (config(n=True), TypeError, "n to be a whole number, got True"),
        "sigma in words": (config(sigma="wide"), TypeError, "sigma to be a number, got 'wide'"),
        "a length between two": (
            config(lengths=(4, 8.5, 16)),
            TypeError,
            "lengths to be a tuple of whole numbers, got",
        ),
        "quick in words": (config(quick="yes"), TypeError, "quick to be True or False, got 'yes'"),
        "no folder": (config(out=3), TypeError, "out to be a path, got 3"),
        "large batches": (config(batch_size=99), ValueError, "batch_size within 0..n=8, got 99"),
    },
}
for entry, wrong in BAD_COVARIANCE.items():
    matrix = jnp.asarray(wrong[0], jnp.float32)
    for function, call in (
        ("infinite_ntk", lambda matrix=matrix: infinite_ntk(X, covariance=matrix)),
        ("init_stylized", lambda matrix=matrix: init_stylized(KEY, 4, 2, covariance=matrix)),
        ("predict_infinite", predicting(covariance=matrix)),
    ):
        ERRORS[function][f"covariance that {entry}"] = (call, ValueError, wrong[1])
CASES = [(function, case) for function, cases in ERRORS.items() for case in cases]


@pytest.mark.parametrize(("function", "case"), CASES, ids=[": ".join(names) for names in CASES])
def test_message(unchecked, relaxed, function, case):
    call, error, message = ERRORS[function][case]
    # Named by the function that was called, not by one that it calls, and on one line.
    with pytest.raises(error, match=rf"^{function}: (expected )?.*{message}") as raised:
        call()
    assert re.search(r"\n", str(raised.value)) is None


def test_every_function_is_in_the_table():
    functions = {name for name, value in vars(theory).items() if inspect.isfunction(value)}
    assert {name for name in functions if vars(theory)[name].__module__.startswith("theory.")} == set(ERRORS)


def everything(W, a, x, y):
    """All that is computed from arrays."""
    return jax.tree.leaves(
        [
            stylized_model(W, a, x),
            finite_ntk(W, a, x, y),
            finite_ntk(W[:3], a[:3], x),
            infinite_ntk(x, y, covariance=0.5 * x),
            infinite_ntk(x, sigma=0.7),
            train(W, a, x, y, steps=4, step_size=0.05),
            predict_infinite(x, y, x, steps=4, step_size=0.01, covariance=0.5 * x),
            init_stylized(KEY, 4, 2, covariance=x),
        ]
    )


def test_numpy_arrays_are_taken_as_jax_arrays_are(unchecked):
    """In float64, as NumPy makes them: JAX computes in its own type, and promotes nothing."""
    arrays = [np.asarray(array, np.float64) for array in (W + 0.1 * jnp.arange(8.0).reshape(4, 2), A, X, 2 * X)]
    prefix, signs, x, y = (jnp.asarray(array) for array in arrays)
    for one, other in zip(everything(*arrays), everything(prefix, signs, x, y), strict=True):
        assert isinstance(one, jax.Array)
        assert one.dtype == other.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    # What is only rearranged stays what it is.
    assert as_matrix(np.ones((1, 2, 3, 3))).dtype == np.float64


def test_what_is_traced_is_not_asked_for_its_values(unchecked):
    jax.jit(lambda sigma: infinite_ntk(X, sigma=sigma))(0.5)
    jax.jit(lambda covariance: infinite_ntk(X, covariance=covariance))(EYE)
    jax.jit(lambda key, sigma: init_stylized(key, 4, 2, sigma))(KEY, 0.5)
    jax.jit(lambda size, key: train(W, A, X, X, steps=2, step_size=size, batch_size=1, key=key))(0.1, KEY)
    # Singular is fine.
    infinite_ntk(X, covariance=ONE((2, 2)))


def test_settings_are_stored_as_json_has_them(unchecked):
    lists, tuples = Config(lengths=[4, 8, 16]), Config(lengths=(4, 8, 16))
    assert lists == tuples == Config(lengths=np.array([4, 8, 16]))
    numpy = Config(n=np.int64(4), sigma=np.float32(0.5), scaling_n=(np.int32(2), 4), out="somewhere")
    assert [type(number) for number in (numpy.n, numpy.sigma, *numpy.scaling_n)] == [int, float, int, int]
    assert numpy.out.name == "somewhere"
