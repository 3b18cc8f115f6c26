"""Declaring methods, decoding their parameters, and the documents made from the table."""

import asyncio
import json
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Raw, Struct

from api.errors import ERRORS, INVALID_PARAMS, METHOD_NOT_FOUND, NOT_FOUND
from api.params import NoParams, Params
from node.rpc.jsonrpc import RpcError
from node.rpc.registry import CONVENTIONS, Info, Method, Table, markdown, openrpc

Height = Annotated[int, Meta(ge=0, description="Height of a block.")]


class Node:
    tip = 6


class BlockView(Struct, frozen=True):
    """A block of the main chain."""

    height: Height
    kind: Literal["idle", "packet"]
    amounts: list[int]
    parent: "BlockView | None" = None


class GetBlock(Params, frozen=True):
    height: Height
    full: Annotated[bool, Meta(description="Whether transactions come whole.")] = False


class Search(Params, frozen=True, rename="camel"):
    below_height: Annotated[Height | None, Meta(description="Only below it.")] = None
    label: Annotated[str, Meta(description="A | B.", max_length=8)] = "x"


table: Table[Node] = Table()


@table.method("chain_getBlock", errors=[NOT_FOUND])
async def chain_get_block(node: Node, params: GetBlock) -> BlockView:
    """A block of the main chain.

    The tip is given with `full`.
    """
    if params.height > node.tip:
        raise RpcError(NOT_FOUND)
    return BlockView(params.height, "packet" if params.full else "idle", [2**63 - 1])


@table.method("chain_search")
async def chain_search(_node: Node, params: Search) -> list[int | None]:
    """Heights that match."""
    return [params.below_height]


@table.method("node_stop")
async def node_stop(_node: Node, _params: NoParams) -> None:
    """Stop the node."""


NEW_HEADS = table.topic("newHeads", BlockView, "Each new tip.")


def invoke(method: str, params: bytes = b"") -> Any:
    return json.loads(asyncio.run(table[method].invoke(Node(), Raw(params))))


def refusal(method: str, params: bytes) -> str:
    with pytest.raises(RpcError) as caught:
        table[method].parse(Raw(params))
    assert caught.value.kind is INVALID_PARAMS
    assert caught.value.object.data.fix == f"Call it as {table[method].usage}."
    return caught.value.object.message


@pytest.mark.parametrize(
    "params", [b'{"height":5,"full":true}', b'{"full":true,"height":5}', b"[5,true]", b"[ 5 , true ]"]
)
def test_parameters_by_name_and_by_position(params: bytes) -> None:
    assert invoke("chain_getBlock", params) == {
        "height": 5,
        "kind": "packet",
        "amounts": [9223372036854775807],
        "parent": None,
    }


@pytest.mark.parametrize("params", [b'{"height":5}', b"[5]"])
def test_optional_parameter_may_be_left_out(params: bytes) -> None:
    assert invoke("chain_getBlock", params)["kind"] == "idle"


@pytest.mark.parametrize("params", [b"", b"[]", b"{}"])
def test_no_parameters_at_all(params: bytes) -> None:
    assert invoke("node_stop", params) is None
    assert invoke("chain_search", params) == [None]


def test_renamed_parameters_use_their_public_name() -> None:
    assert invoke("chain_search", b'{"belowHeight":3}') == invoke("chain_search", b"[3]") == [3]
    assert "unknown parameter `below_height`; `belowHeight`?" in refusal("chain_search", b'{"below_height":3}')


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (b"", "missing required field `height`"),
        (b"[]", "missing required field `height`"),
        (b"[5,true,1]", "at most length 2"),
        (b'{"heigth":5}', "unknown parameter `heigth`; `height`?"),
        (b'{"height":5,"zzz":1}', "unknown parameter `zzz`"),
        (b'{"height":5,"height":6}', "`height` is given twice"),
        (rb'{"height":5,"\u0068eight":6}', "`height` is given twice"),
        (b'{"height":"5"}', "Expected `int`, got `str` - at `$.height`"),
        (b'["5"]', "Expected `int`, got `str` - at `$.height`"),
        (b"[5.0]", "Expected `int`, got `float`"),
        (b"[true]", "Expected `int`, got `bool`"),
        (b"[null]", "Expected `int`, got `null`"),
        (b"[5,1]", "Expected `bool`, got `int`"),
        (b"[5,null]", "Expected `bool`, got `null`"),
        (b"[-1]", ">= 0"),
        (b"[1e400]", "out of range"),
        (b"[" + b"9" * 5000 + b"]", "out of range"),
    ],
)
def test_wrong_parameters_are_refused_with_help(params: bytes, words: str) -> None:
    assert words in refusal("chain_getBlock", params)


def test_refusal_does_not_echo_at_length() -> None:
    assert len(refusal("chain_getBlock", b'{"' + b"x" * 100_000 + b'":1}')) < 300


def test_usage_names_what_is_optional() -> None:
    assert table["chain_getBlock"].usage == "chain_getBlock(height, full?)"
    assert table["node_stop"].usage == "node_stop()"


def test_unknown_method_suggests_a_near_one() -> None:
    with pytest.raises(RpcError) as caught:
        table["chain_getBlok"]
    assert caught.value.kind is METHOD_NOT_FOUND
    assert "`chain_getBlock`" in caught.value.object.data.fix
    with pytest.raises(RpcError):
        table["__init__"]


def test_result_that_has_no_json_is_the_nodes_fault() -> None:
    wrong: Table[Node] = Table()

    @wrong.method("node_wrong")
    async def node_wrong(_node: Node, _params: NoParams) -> int:
        """Breaks its promise."""
        return object()  # type: ignore[return-value]

    with pytest.raises(TypeError):
        asyncio.run(wrong["node_wrong"].invoke(Node(), Raw()))


def test_declaring_a_method_is_checked() -> None:
    class Undescribed(Params, frozen=True):
        height: int

    class Loose(Struct):
        height: Height

    async def undocumented(_node: Node, _params: NoParams) -> int:
        return 1

    async def untyped(_node, _params):  # type: ignore[no-untyped-def]
        """Has no types."""

    async def no_result(_node: Node, _params: NoParams):  # type: ignore[no-untyped-def]
        """Promises nothing."""

    async def loose(_node: Node, _params: Loose) -> int:
        """Takes a struct that ignores unknown names."""
        return 1

    async def undescribed(_node: Node, _params: Undescribed) -> int:
        """Takes a parameter that nobody described."""
        return 1

    async def unheard_of(_node: Node, _params: NoParams) -> Node:
        """Returns what JSON cannot say."""
        return Node()

    def not_async(_node: Node, _params: NoParams) -> int:
        """Would block the loop."""
        return 1

    async def good(_node: Node, _params: NoParams) -> int:
        """Fine."""
        return 1

    fresh: Table[Any] = Table()
    for handler, words in [
        (undocumented, "no docstring"),
        (untyped, "is not declared as"),
        (no_result, "is not declared as"),
        (loose, "is not declared as"),
        (undescribed, "no Meta"),
        (unheard_of, "without a JSON schema"),
        (not_async, "not an async function"),
    ]:
        with pytest.raises(TypeError, match=words):
            fresh.method("node_x")(handler)
    with pytest.raises(TypeError, match="not like chain_getBlock"):
        fresh.method("Node-x")(good)
    assert list(fresh) == []
    fresh.method("node_x")(good)
    with pytest.raises(TypeError, match="declared twice"):
        fresh.method("node_x")(good)


def test_declaring_a_topic_is_checked() -> None:
    fresh: Table[Node] = Table()
    with pytest.raises(TypeError, match="no documentation"):
        fresh.topic("jobs", int, " ")
    with pytest.raises(TypeError, match="without a JSON schema"):
        fresh.topic("jobs", Node, "Jobs.")
    fresh.topic("jobs", int, "Jobs.")
    with pytest.raises(TypeError, match="declared twice"):
        fresh.topic("jobs", int, "Jobs.")


def test_tables_of_several_modules_join_into_one() -> None:
    whole: Table[Node] = Table()
    whole.include(table)
    assert [method.name for method in whole] == ["chain_getBlock", "chain_search", "node_stop"]
    assert whole.topics == (NEW_HEADS,)
    with pytest.raises(TypeError, match="declared twice"):
        whole.include(table)


def document() -> Any:
    return json.loads(msgspec.json.encode(openrpc(Info("Test RPC", "1.2.3"), table, table.topics)))


def test_openrpc_document_describes_every_entry() -> None:
    described = document()
    assert described["openrpc"] == "1.3.2"
    assert described["info"] == {"title": "Test RPC", "version": "1.2.3", "description": CONVENTIONS}
    assert [method["name"] for method in described["methods"]] == ["chain_getBlock", "chain_search", "node_stop"]
    assert described["methods"][0] == {
        "name": "chain_getBlock",
        "summary": "A block of the main chain.",
        "description": "A block of the main chain.\n\nThe tip is given with `full`.",
        "paramStructure": "either",
        "params": [
            {
                "name": "height",
                "description": "Height of a block.",
                "required": True,
                "schema": {"type": "integer", "minimum": 0, "description": "Height of a block."},
            },
            {
                "name": "full",
                "description": "Whether transactions come whole.",
                "required": False,
                "schema": {"type": "boolean", "description": "Whether transactions come whole.", "default": False},
            },
        ],
        "result": {
            "name": "result",
            "description": "",
            "required": True,
            "schema": {"$ref": "#/components/schemas/BlockView"},
        },
        "errors": [{"code": -32001, "message": "Not found", "x-name": "NOT_FOUND"}],
    }
    assert described["components"]["schemas"]["BlockView"]["properties"]["height"]["minimum"] == 0
    assert described["x-topics"] == [
        {"name": "newHeads", "description": "Each new tip.", "event": {"$ref": "#/components/schemas/BlockView"}}
    ]


def test_openrpc_references_resolve() -> None:
    described = document()
    references = [part.split('"')[0] for part in json.dumps(described).split('"$ref": "')[1:]]
    assert references
    for reference in references:
        name = reference.removeprefix("#/components/schemas/")
        assert name in described["components"]["schemas"]


def test_amounts_beyond_doubles_are_documented() -> None:
    assert "2⁵³" in CONVENTIONS


def test_markdown_documents_every_entry() -> None:
    page = markdown(openrpc(Info("Test RPC", "1.2.3"), table, table.topics))
    assert page.startswith("# Test RPC\n")
    assert page.endswith("|\n")
    for method in table:
        assert f"### {method.name}\n\n{method.doc}\n" in page
    assert "| `height` | integer, ≥ 0 | Height of a block. |" in page
    assert "| `full` | boolean, optional | Whether transactions come whole. |" in page
    assert r"| `label` | string, at most 8 characters, optional | A \| B. |" in page
    assert "Result: array of (integer or null)" in page
    assert "Result: [BlockView](#blockview)" in page
    assert "### BlockView\n\nA block of the main chain.\n" in page
    assert '| `kind` | `"idle"` or `"packet"` |' in page
    assert "| `newHeads` | [BlockView](#blockview) | Each new tip. |" in page
    assert all(f"| `{kind.name}` | {kind.code} |" in page for kind in ERRORS)


def test_documents_are_the_same_each_time() -> None:
    assert document() == document()
    assert markdown(openrpc(Info("T", "1"), table, ())) == markdown(openrpc(Info("T", "1"), table, ()))


def test_method_is_typed_by_its_table() -> None:
    method: Method[Node] = table["chain_getBlock"]
    assert (method.params, method.result, method.errors) == (GetBlock, BlockView, (NOT_FOUND,))
