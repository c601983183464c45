"""What devices exchange, read from the text of a compiled program."""

import re

_SIZES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s64": 8, "s32": 4, "u32": 4, "u8": 1, "s8": 1, "pred": 1}
_LINE = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\((.*)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def collectives(text):
    """Kind and bytes of the arrays of every collective, each as many times as it is written (a loop's body once).

    Those of groups of one device exchange nothing, and are left out.
    """
    found = []
    for shapes, kind, rest in _LINE.findall(text):
        if "replica_groups={{0},{1}" in rest:
            continue
        for dtype, shape in _ARRAY.findall(shapes):
            count = 1
            for side in filter(None, shape.split(",")):
                count *= int(side)
            found.append((kind, count * _SIZES[dtype]))
    return found
