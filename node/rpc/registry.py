"""The table of methods and of topics: every call is declared once, with its types and its documentation.

    class GetBlock(Params):
        height: Annotated[int, Meta(ge=0, description="Height of the block.")]
        full: Annotated[bool, Meta(description="Whether transactions come whole, or as ids.")] = False

    table: Table[NodeApi] = Table()

    @table.method("chain_getBlock", errors=[NOT_FOUND])
    async def chain_get_block(node: NodeApi, params: GetBlock) -> BlockView:
        \"""The main chain's block at a height.\"""

    NEW_HEADS = table.topic("newHeads", HeadView, "Each new tip, in order; after a reorg the new branch's blocks.")

Declaring is checking: an entry without documentation, types or a JSON schema raises `TypeError` when its module is
imported. Parameters arrive by name or by position, in the order of the struct's fields, and are decoded strictly:
no coercion, no unknown names, none twice. `openrpc` describes the same table as an OpenRPC document
(https://spec.open-rpc.org), and `markdown` turns that document into docs/rpc.md.
"""

import difflib
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.structs import FieldInfo

from api.errors import ERRORS, INVALID_PARAMS, METHOD_NOT_FOUND, ErrorKind
from api.fields import HASH_PATTERN, HEX_PATTERN
from api.params import Params
from consensus.codec import MAX_AMOUNT
from node.rpc.jsonrpc import RpcError, decode_array, excerpt, first_byte, is_absent, visit_names

CONVENTIONS = (
    "JSON-RPC 2.0 by POST or over a WebSocket at `/ws`; batches hold at most 100 requests. Parameters go by name or by "
    'position. Types are strict: `"1"` is no integer, and an unknown parameter is an error. Amounts are integers of '
    "grains (1 TILE = 10⁹ grains) up to 2⁶³−1: a client that reads JSON numbers as doubles loses digits above 2⁵³ and "
    "needs a parser with big integers. Bytes are lowercase hexadecimal without prefix unless the method says otherwise."
)

_NAME = re.compile(r"(?:[a-z]+_)?[a-z][A-Za-z0-9]*|rpc\.discover")
_SCHEMAS = "#/components/schemas/"


N = TypeVar("N")
P = TypeVar("P", bound=Params)
R = TypeVar("R")
E = TypeVar("E")

Handler = Callable[[N, P], Awaitable[R]]


@dataclass(frozen=True, slots=True)
class Method(Generic[N]):
    """One row of the table. `handler` takes the context and an instance of `params`, and so does `ready`, which gives
    the result as JSON where it has it without waiting. `spelt` are the parameters' names as JSON spells them, and
    `nothing` are the parameters where none are given (None: some must be)."""

    name: str
    handler: Callable[[N, Any], Awaitable[Any]]
    params: type[Params]
    result: Any
    doc: str
    errors: tuple[ErrorKind, ...]
    decoder: msgspec.json.Decoder[Params]
    spelt: tuple[bytes, ...]
    nothing: Params | None
    ready: Callable[[N, Any], bytes | None] | None = None

    def at_hand(self, context: N, params: Raw) -> bytes | None:
        """The result as JSON where it is ready and the parameters are beyond doubt; None: `invoke` it. May raise
        `RpcError` as well, which `invoke` then raises again."""
        if self.ready is None:
            return None
        parsed = self.nothing if is_absent(params) else self._parse_plain(bytes(params))
        return None if parsed is None else self.ready(context, parsed)

    def _parse_plain(self, text: bytes) -> Params | None:
        """Parameters in an object without anything that would take a closer look."""
        if text in (b"{}", b"[]"):
            return self.nothing
        if text[:1] == b"[":
            return self.parse(Raw(text))
        if text[:1] != b"{" or b"\\" in text:
            return None
        for name in self.spelt:
            if text.count(name) > 1:
                return None
        try:
            return self.decoder.decode(text)
        except (msgspec.ValidationError, RecursionError):
            return None  # and `invoke` says why

    async def invoke(self, context: N, params: Raw) -> bytes:
        """Decode, call, encode. Raises `RpcError`, and whatever the handler raises."""
        return msgspec.json.encode(await self.handler(context, self.parse(params)))

    def parse(self, raw: Raw) -> Params:
        """The parameters from an array, an object or nothing; raises `RpcError` of kind INVALID_PARAMS."""
        try:
            named = self._by_name(raw)
            visit_names(named, self._name_checker())
            return self.decoder.decode(named)
        except (msgspec.ValidationError, RecursionError) as error:
            raise self._refusal(excerpt(error)) from None

    def _by_name(self, raw: Raw) -> Raw:
        if is_absent(raw):
            return Raw(b"{}")
        if first_byte(raw) != b"[":
            return raw
        names = self.params.__struct_encode_fields__
        return Raw(msgspec.json.encode(dict(zip(names, decode_array(raw, len(names)), strict=False))))

    def _name_checker(self) -> Callable[[str], None]:
        known = self.params.__struct_encode_fields__
        unseen = set(known)

        def check(name: str) -> None:
            if name in unseen:
                unseen.remove(name)
            elif name in known:
                raise self._refusal(f"`{name}` is given twice")
            else:
                near = difflib.get_close_matches(name[:64], known, n=1)
                raise self._refusal(f"unknown parameter `{excerpt(name, 64)}`" + "".join(f"; `{n}`?" for n in near))

        return check

    def _refusal(self, why: str) -> RpcError:
        return RpcError(INVALID_PARAMS, f"Invalid params: {why}", fix=f"Call it as {self.usage}.")

    @property
    def usage(self) -> str:
        """The call as a line of text, such as `chain_getBlock(height, full?)`."""
        fields = msgspec.structs.fields(self.params)
        return f"{self.name}({', '.join(f.encode_name + ('' if f.required else '?') for f in fields)})"


@dataclass(frozen=True, slots=True)
class Topic(Generic[E]):
    """Something that a WebSocket client can subscribe to."""

    name: str
    event: type[E]
    doc: str


class Table(Generic[N]):
    """Methods that share a context of type `N`, and topics, in the order of their declaration."""

    def __init__(self) -> None:
        self._methods: dict[str, Method[N]] = {}
        self._topics: dict[str, Topic[Any]] = {}

    def __iter__(self) -> Iterator[Method[N]]:
        return iter(self._methods.values())

    def __contains__(self, name: str) -> bool:
        return name in self._methods

    def __getitem__(self, name: str) -> Method[N]:
        """Raises `RpcError` of kind METHOD_NOT_FOUND."""
        method = self.get(name)
        if method is None:
            # Only within a namespace: a guess among all names takes a millisecond, and strangers may ask for many.
            kin = [known for known in self._methods if known.partition("_")[0] == name.partition("_")[0]]
            near = difflib.get_close_matches(name[:64], kin, n=1)
            hint = f"Did you mean `{near[0]}`? " if near else ""
            raise RpcError(METHOD_NOT_FOUND, fix=f"{hint}`rpc.discover` lists every method.")
        return method

    def get(self, name: str) -> Method[N] | None:
        """The method of that name, if there is one."""
        return self._methods.get(name)

    @property
    def topics(self) -> Sequence[Topic[Any]]:
        return tuple(self._topics.values())

    def method(
        self,
        name: str,
        *,
        errors: Sequence[ErrorKind] = (),
        at_hand: Callable[[N, Any], bytes | None] | None = None,
    ) -> Callable[[Handler[N, P, R]], Handler[N, P, R]]:
        """Declare an async function as a method; its docstring, types and field descriptions are the documentation.

        `errors` are those that it raises beyond the standard ones. `at_hand` gives its result as JSON, from the same
        arguments, where that needs no waiting.
        """

        def declare(handler: Handler[N, P, R]) -> Handler[N, P, R]:
            self._add(_declaration(name, handler, tuple(errors), at_hand))
            return handler

        return declare

    def topic(self, name: str, event: type[E], doc: str) -> Topic[E]:
        """Declare what `subscribe(name)` delivers: values of type `event`."""
        if name in self._topics:
            raise TypeError(f"topic {name} is declared twice")
        if not doc.strip():
            raise TypeError(f"topic {name} has no documentation")
        _schemas(name, [event])
        topic = Topic(name, event, doc)
        self._topics[name] = topic
        return topic

    def include(self, other: "Table[N]") -> None:
        """Add another module's entries to this table."""
        for method in other:
            self._add(method)
        for topic in other.topics:
            if topic.name in self._topics:
                raise TypeError(f"topic {topic.name} is declared twice")
            self._topics[topic.name] = topic

    def _add(self, method: Method[N]) -> None:
        if method.name in self._methods:
            raise TypeError(f"method {method.name} is declared twice")
        self._methods[method.name] = method


def _declaration(
    name: str,
    handler: Callable[[N, P], Awaitable[object]],
    errors: tuple[ErrorKind, ...],
    ready: Callable[[N, Any], bytes | None] | None,
) -> Method[N]:
    if not _NAME.fullmatch(name):
        raise TypeError(f"method name {name!r} is not like chain_getBlock")
    doc = inspect.getdoc(handler)
    if not doc:
        raise TypeError(f"method {name} has no docstring")
    if not inspect.iscoroutinefunction(handler):
        raise TypeError(f"method {name} is not an async function")
    hints = get_type_hints(handler, include_extras=True)
    arguments = list(inspect.signature(handler).parameters)
    params = hints.get(arguments[1]) if len(arguments) == 2 else None
    if not (isinstance(params, type) and issubclass(params, Params) and "return" in hints):
        raise TypeError(f"method {name} is not declared as (context, params: a subclass of Params) -> result")
    fields = msgspec.structs.fields(params)
    for field in fields:
        if not _description(field.type):
            raise TypeError(f"parameter {field.name} of {name} has no Meta(description=…)")
    _schemas(name, [*(field.type for field in fields), hints["return"]])
    spelt = tuple(f'"{field.encode_name}"'.encode() for field in fields)
    nothing = None if any(field.required for field in fields) else params()
    decoder = msgspec.json.Decoder(params)
    return Method(name, handler, params, hints["return"], doc, errors, decoder, spelt, nothing, ready)


def _description(annotation: Any) -> str:
    """The `Meta` description of a type, looking through unions: `Height | None` is described as `Height` is."""
    if get_origin(annotation) is Annotated:
        own = [m.description for m in annotation.__metadata__ if isinstance(m, Meta) and m.description]
        if own:
            return own[-1]
    return next(filter(None, map(_description, get_args(annotation))), "")


def _schemas(name: str, types: Sequence[Any]) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    try:
        return msgspec.json.schema_components(types, ref_template=_SCHEMAS + "{name}")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} has a type without a JSON schema: {error}") from error


# --- the OpenRPC document ------------------------------------------------------------------------------------------


class Info(Struct, frozen=True):
    """OpenRPC Info Object."""

    title: str
    version: str
    description: str = CONVENTIONS


class ContentDescriptor(Struct, frozen=True):
    """OpenRPC Content Descriptor Object: a parameter or a result."""

    name: str
    description: str
    required: bool
    schema: dict[str, Any]


class ErrorEntry(Struct, frozen=True):
    """OpenRPC Error Object; `x-name` is what `error.data.name` will be."""

    code: int
    message: str
    name: str = msgspec.field(name="x-name")


class MethodEntry(Struct, frozen=True, rename="camel"):
    """OpenRPC Method Object."""

    name: str
    summary: str
    description: str
    params: list[ContentDescriptor]
    result: ContentDescriptor
    errors: list[ErrorEntry]
    param_structure: str = "either"


class TopicEntry(Struct, frozen=True):
    """An extension of OpenRPC: what `subscribe` delivers for one topic."""

    name: str
    description: str
    event: dict[str, Any]


class Components(Struct, frozen=True):
    """OpenRPC Components Object."""

    schemas: dict[str, Any]


class OpenRpc(Struct, frozen=True):
    """OpenRPC Object, version 1.3.2."""

    info: Info
    methods: list[MethodEntry]
    components: Components
    topics: list[TopicEntry] = msgspec.field(name="x-topics")
    openrpc: str = "1.3.2"


def openrpc(info: Info, methods: Iterable[Method[Any]], topics: Iterable[Topic[Any]]) -> OpenRpc:
    """Describe the table; schemas of named types are shared under `components`."""
    methods, topics = list(methods), list(topics)
    fields = [msgspec.structs.fields(method.params) for method in methods]
    types = [f.type for row in fields for f in row] + [m.result for m in methods] + [t.event for t in topics]
    schemas, shared = _schemas("the table", types)
    supply = iter(schemas)
    params = [[_parameter(field, next(supply)) for field in row] for row in fields]
    results = [next(supply) for _ in methods]
    return OpenRpc(
        info,
        [_method_entry(*row) for row in zip(methods, params, results, strict=True)],
        Components(shared),
        [TopicEntry(topic.name, topic.doc, next(supply)) for topic in topics],
    )


def _parameter(field: FieldInfo, schema: dict[str, Any]) -> ContentDescriptor:
    if field.default is not msgspec.NODEFAULT:
        schema = {**schema, "default": msgspec.to_builtins(field.default)}
    return ContentDescriptor(field.encode_name, _description(field.type), field.required, schema)


def _method_entry(method: Method[Any], params: list[ContentDescriptor], result: dict[str, Any]) -> MethodEntry:
    return MethodEntry(
        method.name,
        method.doc.partition("\n")[0],
        method.doc,
        params,
        ContentDescriptor("result", "", True, result),
        [ErrorEntry(kind.code, kind.message, kind.name) for kind in method.errors],
    )


# --- docs/rpc.md ---------------------------------------------------------------------------------------------------


def markdown(document: OpenRpc) -> str:
    """The document as a page for people, ending in a newline; equal tables give equal text."""
    parts = [f"# {document.info.title}", document.info.description, "## Methods"]
    parts += [_method_text(method) for method in document.methods]
    if document.topics:
        parts += ["## Subscriptions", _table("topic", "event", "", rows=[_topic_row(t) for t in document.topics])]
    if document.components.schemas:
        parts += ["## Types", *(_type_section(*item) for item in sorted(document.components.schemas.items()))]
    errors = [(f"`{kind.name}`", str(kind.code), kind.message, kind.doc) for kind in ERRORS]
    parts += [
        "## Errors",
        "`error.data` holds `name`, `fix` (what to do), `reason` where a rule of the chain was broken, `incident` for "
        "an internal error, and where a transaction's nonce was refused `account_nonce`, the first that no block has "
        "used, and `next_nonce`, the first that is not pending either. Any method may also give one of the first five, "
        "`LIMIT` and `TIMEOUT`.",
        _table("name", "code", "message", "meaning", rows=errors),
    ]
    return "\n\n".join(parts) + "\n"


def _method_text(method: MethodEntry) -> str:
    parts = [f"### {method.name}", method.description]
    if method.params:
        rows = [
            (f"`{p.name}`", _type_text(p.schema) + ("" if p.required else ", optional"), p.description)
            for p in method.params
        ]
        parts.append(_table("parameter", "type", "", rows=rows))
    parts.append(f"Result: {_type_text(method.result.schema)}")
    if method.errors:
        parts.append("Errors: " + ", ".join(f"`{error.name}`" for error in method.errors))
    return "\n\n".join(parts)


def _topic_row(topic: TopicEntry) -> tuple[str, str, str]:
    return f"`{topic.name}`", _type_text(topic.event), topic.description


def _type_section(name: str, schema: dict[str, Any]) -> str:
    parts = [f"### {name}"]
    if schema.get("description"):
        parts.append(inspect.cleandoc(schema["description"]))
    properties: dict[str, dict[str, Any]] | None = schema.get("properties")
    if properties:
        rows = [(f"`{field}`", _type_text(s), s.get("description", "")) for field, s in properties.items()]
        parts.append(_table("field", "type", "", rows=rows))
    else:
        parts.append(_type_text(schema))
    return "\n\n".join(parts)


def _table(*head: str, rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", r"\|").replace("\n", " ") for c in line) + " |" for line in lines)


_BOUNDS = (
    ("minimum", "≥ {}"),
    ("maximum", "≤ {}"),
    ("exclusiveMinimum", "> {}"),
    ("exclusiveMaximum", "< {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} elements"),
    ("maxItems", "at most {} elements"),
    ("pattern", "matching `{}`"),
)


_PATTERNS = {HASH_PATTERN: "64 hexadecimal digits", HEX_PATTERN: "hexadecimal digits"}


def _type_text(schema: dict[str, Any]) -> str:
    """One line for a schema as msgspec writes them."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_SCHEMAS)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(_type_text, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{msgspec.json.encode(value).decode()}`" for value in schema["enum"])
    text = schema.get("type", "any JSON value")
    if text == "array" and "prefixItems" in schema:
        return f"array of ({', '.join(map(_type_text, schema['prefixItems']))})"
    if text == "array" and schema.get("items"):
        item = _type_text(schema["items"])
        text += f" of ({item})" if "anyOf" in schema["items"] else f" of {item}"
    elif text == "object" and isinstance(schema.get("additionalProperties"), dict):
        text += f" of {_type_text(schema['additionalProperties'])}"
    if words := _PATTERNS.get(schema.get("pattern", "")):
        return words
    bounds = [(words, schema[key]) for key, words in _BOUNDS if key in schema]
    return ", ".join([text, *(words.format(bound) for words, bound in bounds if bound != MAX_AMOUNT)])
