"""Several devices as one: a mesh of them, and where weights, what trains, prefixes and batches lie on it.

The axes of a mesh are `data` (rows of a batch), `tensor` (heads, MLP width, vocabulary) and `prefix` (a prefix's
tokens). Arrays are cut once, where they are put on the mesh; what devices then have to exchange follows from that, and
XLA puts it into the program. `ntkprefix.shared_attention` has the one computation that is written out.
"""

from ntkprefix.parallel.mesh import AXES, even_rows, mesh_of, off_mesh, on_mesh, sizes_of
from ntkprefix.parallel.placement import (
    Placed,
    placed,
    put,
    put_model,
    put_rest,
    put_rows,
    rows_over_data,
    tokens_over_prefix,
    weights_onto,
)
from ntkprefix.parallel.specs import adapter_specs, path_of, weight_specs

__all__ = [
    "AXES",
    "Placed",
    "adapter_specs",
    "even_rows",
    "mesh_of",
    "off_mesh",
    "on_mesh",
    "path_of",
    "placed",
    "put",
    "put_model",
    "put_rest",
    "put_rows",
    "rows_over_data",
    "sizes_of",
    "tokens_over_prefix",
    "weight_specs",
    "weights_onto",
]
