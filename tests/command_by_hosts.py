"""`ntkprefix` as one of several processes, with tiny models: `test_hosts.py` starts it in each of them, and once alone.

Its arguments are the command's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from flax import nnx
from texts.words import WORDS, word_tokenizer

from ntkprefix.cli import main
from ntkprefix.commands import compress, jobs
from ntkprefix.models import BlockConfig, TextConfig, TextModel


def text_model(name, **_):
    """Made when it is asked for, which is after the processes have met."""
    causal = name == "decoder"
    block = BlockConfig(width=16, heads=4, mlp_width=16, causal=causal)
    options = {"positions": 256, "token_types": 0 if causal else 2, "head": "tied" if causal else "none"}
    config = TextConfig(vocabulary=len(WORDS), layers=2, block=block, **options)
    return nnx.jit(lambda: TextModel(config, rngs=nnx.Rngs(0)))()


for command in (jobs, compress):
    command.load_text_model = text_model
    command.load_tokenizer = lambda name: word_tokenizer(special=name == "encoder")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
