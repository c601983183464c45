"""Files with a few bytes changed, or cut off."""

import numpy as np

# Digits, brackets and bytes that turn one structure into another.
TELLING = list(b'0919[]{}",:e-/\0\1')


def variants(whole, count, header):
    """Most of the damage is where sizes and names are, in the first `header` bytes."""
    random = np.random.default_rng(0)
    for _ in range(count):
        if random.random() < 0.2:
            yield whole[: random.integers(len(whole))]
            continue
        end = min(header, len(whole)) if random.random() < 0.9 else len(whole)
        damaged = bytearray(whole)
        for place in random.integers(0, end, random.integers(1, 4)):
            damaged[place] = random.integers(256) if random.random() < 0.5 else random.choice(TELLING)
        yield bytes(damaged)


def assert_named(file, load, *, count, header):
    """Whatever is in the file, `load` gives something or says which file is wrong, and most of the damage it finds."""
    refused = []
    for content in variants(file.read_bytes(), count, header):
        file.write_bytes(content)
        try:
            load()
        except (ValueError, OSError) as error:
            refused.append(str(error))
    assert len(refused) > count / 2
    assert [message for message in refused if str(file.parent) not in message] == []
