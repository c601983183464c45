"""`ntkprefix compress` on a mesh of two devices: the numbers of one.

A program of its own, which `prompts/test_prompts.py` starts with a model, a prompt and a folder: how many devices there
are is settled when JAX starts.
"""

import sys

import jax
import numpy as np

from ntkprefix.cli import main
from ntkprefix.prompts import load_prompt

assert jax.device_count() == 2
model, prompt, folder = sys.argv[1:]
options = ["compress", "--model", model, "--prompt", prompt, "--budget", "8 tokens", "--dtype", "float32"]
for share, queries in (("even", "repeat"), ("effect", "repeat"), ("effect", "apart")):
    found = []
    for name, mesh in (("one", []), ("two", ["--mesh", "tensor=2"])):
        file = f"{folder}/{name}-{share}-{queries}.safetensors"
        assert main([*options, "--share", share, "--queries", queries, *mesh, "--out", file]) == 0
        found.append(jax.tree.leaves(load_prompt(file).prefixes))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)
