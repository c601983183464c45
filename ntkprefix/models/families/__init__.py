"""Architectures: how each one's configuration is read, and which tensors its parameters come from.

A new one is a file here with `TYPES` (values of `model_type`), `ROOT` and `ANCHOR` (where its tensors start, and one of
them), `IGNORED`, `read_config` and `names`; and its name in `TEXT`.
"""

from ntkprefix.models.families import bert, chatglm, glm, gpt2, llama

TEXT = {kind: family for family in (bert, chatglm, glm, gpt2, llama) for kind in family.TYPES}
