"""Every method and topic of the node, in one table."""

from __future__ import annotations

from node.rpc import topics
from node.rpc.context import Context
from node.rpc.methods import chain, job, node, state, tx, work, worker
from node.rpc.registry import Info, Table, markdown, openrpc
from node.rpc.server import every_method

TITLE = "Tilework node RPC"

TABLE: Table[Context] = Table()
for _part in (chain, state, tx, job, work, worker, node, topics):
    TABLE.include(_part.TABLE)

_TENSORS = """\
## Tensors

Matrices travel outside JSON, as `.npy` files (format 1.0 to 3.0, no pickles) of int8 or int32 in little-endian C order,
with both sides multiples of 64 in 64…4096 and at most 32 MiB of entries.

| request | |
| --- | --- |
| `PUT /tensors?side=rows` | A left operand (int8 in [-63, 63]) or a product (int32), cut into strips of 64 rows. |
| `PUT /tensors?side=columns` | A right operand, cut into strips of 64 columns. |
| `GET /tensors/{commitment}` | Download a tensor. |
| `HEAD /tensors/{commitment}` | Whether it is here, and its size. |

An upload answers `{"commitment", "root", "rows", "cols", "dtype", "side"}`. Errors are JSON-RPC error objects with an
HTTP status. An uploaded tensor is kept until a block claims it, for a limited number of blocks.

"""


def rpc_docs() -> str:
    """docs/rpc.md: the same for equal tables, so it names no version."""
    page = markdown(openrpc(Info(TITLE, ""), every_method(TABLE), TABLE.topics))
    return page.replace("## Types\n", _TENSORS + "## Types\n", 1)
