"""One table of every way to call a text model wrongly, and what it says."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntkprefix.models import Adaptation, BlockConfig, Cache, TextConfig, TextModel, checks, generate

BLOCK = BlockConfig(width=12, heads=3, mlp_width=8, causal=True)
ENCODER = TextConfig(vocabulary=50, layers=2, block=BlockConfig(width=12, heads=3, mlp_width=8), head="none")
TOKENS, PROMPT = jnp.zeros((2, 5), jnp.int32), Adaptation(prompt=jnp.zeros((4, 12)))


def decoder(**options):
    return nnx.eval_shape(
        lambda: TextModel(TextConfig(vocabulary=50, layers=2, block=BLOCK, **options), rngs=nnx.Rngs(0))
    )


def encoder():
    return nnx.eval_shape(lambda: TextModel(ENCODER, rngs=nnx.Rngs(0)))


def call(*inputs, **options):
    return lambda: decoder(positions=16)(*inputs, **options)


def extend(tokens=TOKENS, capacity=16, **options):
    model = decoder(positions=options.pop("positions", 0))
    return lambda: model.extend(tokens, Cache.empty(model.config, 2, capacity), **options)


def make(tokens=TOKENS, new=3, **options):
    return lambda: generate(decoder(positions=16), tokens, new, **options)


ERRORS = {
    "a list of tokens": (call([[1, 2]]), TypeError, "tokens: expected an array of integers below 50, got list"),
    "floating tokens": (call(jnp.zeros((2, 5))), TypeError, "an array of integers below 50, got float32"),
    "one text": (call(TOKENS[0]), ValueError, r"tokens: expected \[B, T\], got shape \[5\]. Add a batch axis"),
    "a mask of numbers": (
        call(TOKENS, mask=TOKENS),
        TypeError,
        "mask: expected booleans, True for tokens .* got int32",
    ),
    "a mask of another shape": (
        call(TOKENS, mask=jnp.zeros((2, 4), bool)),
        ValueError,
        r"mask: expected the shape of the tokens, \[2, 5\], got \[2, 4\]",
    ),
    "an adapter itself": (
        call(TOKENS, adapter={"Z": 1}),
        TypeError,
        "adapter: expected an Adaptation, got dict. Call the adapter's `adapt`",
    ),
    "prefixes twice": (
        call(TOKENS, prefixes=[None, None], adapter=Adaptation(prefixes=[None, None])),
        ValueError,
        "prefixes: expected them once, got prefixes= and those of adapter=",
    ),
    "a prompt for each row": (
        call(TOKENS, adapter=Adaptation(prompt=jnp.zeros((2, 4, 12)))),
        ValueError,
        r"prompt: expected \[P, width\], one for all rows, got shape \[2, 4, 12\]",
    ),
    "too long": (call(jnp.zeros((2, 17), jnp.int32)), ValueError, "at most 16 positions, got 17. Cut the text"),
    "too long with a prompt": (
        call(jnp.zeros((2, 13), jnp.int32), adapter=PROMPT),
        ValueError,
        "at most 16 positions, got 17",
    ),
    "an encoder's cache": (
        lambda: encoder().extend(TOKENS, Cache.empty(ENCODER, 2, 16)),
        ValueError,
        "extend: expected a causal model, got an encoder, whose tokens see those after them",
    ),
    "no room": (
        extend(capacity=4),
        ValueError,
        "at most 4 tokens, the cache's room, got 5 with the prompt. Make a larger",
    ),
    "no room for the prompt": (
        extend(capacity=8, adapter=PROMPT),
        ValueError,
        "extend: expected at most 8 tokens, .* 9",
    ),
    "no positions in a cache": (extend(positions=8, adapter=PROMPT), ValueError, "at most 8 positions, got 9"),
    "an encoder's text": (
        lambda: generate(encoder(), TOKENS, 3),
        ValueError,
        "generate: expected a causal model with a head, got an encoder",
    ),
    "nothing new": (make(new=0), ValueError, "generate: expected at least 1 new token, got 0"),
    "half a token": (make(new=2.5), ValueError, "generate: expected at least 1 new token, got 2.5"),
    "an array of new tokens": (make(new=TOKENS), ValueError, "generate: expected at least 1 new token, got Array"),
    "no text": (make(TOKENS[:, :0]), ValueError, "texts of at least one token, got none. Start with the model's first"),
    "too much": (make(new=12), ValueError, "at most 16 positions, got 17"),
    "too much with a prompt": (make(new=8, adapter=PROMPT), ValueError, "at most 16 positions, got 17"),
    "an adapter itself for a text": (make(adapter="lora"), TypeError, "adapter: expected an Adaptation, got str"),
    "a word to stop": (make(stop="."), ValueError, "expected stop to be a token, an integer below 50, got '.'"),
    "a stop beyond": (make(stop=50), ValueError, "stop to be a token, an integer below 50, got 50"),
    "lengths in a list": (make(lengths=[5, 5]), TypeError, "lengths: expected an array of integers, got list"),
    "half lengths": (make(lengths=jnp.ones(2)), TypeError, "lengths: expected an array of integers, got float32"),
    "a length too few": (
        make(lengths=jnp.ones(1, jnp.int32)),
        ValueError,
        r"lengths: expected one for each text, \[2\], got shape \[1\]",
    ),
    "an empty text": (make(lengths=np.array([5, 0])), ValueError, r"lengths: expected each within 1..5, got \[5, 0\]"),
    "a length beyond": (
        make(lengths=np.array([6, 1])),
        ValueError,
        r"lengths: expected each within 1..5, got \[6, 1\]",
    ),
    "a start before the first": (make(start=-1), ValueError, "start: expected positions of at least 0, got -1"),
    "half a start": (make(start=0.5), TypeError, "start: expected an integer, or an array of them, got float"),
    "starts of three texts": (make(start=np.arange(3)), ValueError, r"one for all texts, or \[2\], got shape \[3\]"),
    "a start too late": (make(start=np.array([0, 9])), ValueError, "at most 16 positions, got 17"),
    "cold": (make(temperature=-1.0), ValueError, "expected a temperature of at least 0, got -1.0"),
    "no number": (make(temperature=float("nan")), ValueError, "expected a temperature of at least 0, got nan"),
    "far too many new tokens": (make(new=10**11), ValueError, "at most 2,147,483,647 new tokens, got 100,000,000,000"),
    "more positions than int32 has": (
        lambda: generate(decoder(), TOKENS, 2**31 - 3),
        ValueError,
        "at most 2,147,483,647 positions, got 2,147,483,650. Ask for fewer",
    ),
    "no mass": (make(top_p=0.0), ValueError, "expected top_p above 0 and up to 1, got 0.0"),
    "too much mass": (make(top_p=1.5), ValueError, "expected top_p above 0 and up to 1, got 1.5"),
    "no key": (make(temperature=1.0), ValueError, "expected a key to draw tokens with, got none. Give key=jax.random"),
    "no key in a program": (
        lambda: jax.jit(lambda t: generate(decoder(), TOKENS, 3, temperature=t))(0.0),
        ValueError,
        "expected a key to draw tokens with",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    wrong, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        wrong()


@pytest.mark.usefixtures("unchecked")
def test_the_table_has_every_message():
    """Each `raise` of the checks is reached by a row."""
    lines = enumerate(Path(checks.__file__).read_text().splitlines(), start=1)
    raises = {number for number, line in lines if line.strip().startswith("raise ")}
    reached = set()
    for wrong, kind, _ in ERRORS.values():
        with pytest.raises(kind) as error:
            wrong()
        reached.add(error.traceback[-1].lineno + 1)
    assert reached == raises
