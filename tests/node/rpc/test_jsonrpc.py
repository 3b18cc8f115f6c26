"""The JSON-RPC 2.0 specification's own examples, and what hostile or careless clients send."""

import asyncio
import json
import logging
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from api.errors import ERRORS, LIMIT, METHOD_NOT_FOUND, NOT_FOUND, REJECTED
from node.rpc.jsonrpc import MAX_BATCH, MAX_BATCH_ANSWER_BYTES, NO_METHOD, Dispatcher, RpcError, decode_array

Observation = tuple[str, float, str]


NAMES = frozenset(
    [
        "subtract",
        "sum",
        "get_data",
        "update",
        "notify_sum",
        "notify_hello",
        "echo",
        "large",
        "sleep",
        "missing",
        "refused",
        "broken",
        "own_timeout",
    ]
)


class Methods:
    """The specification's methods, and some that misbehave."""

    def __init__(self) -> None:
        self.called: list[tuple[str, Any]] = []
        self.cancelled = False

    async def __call__(self, name: str, raw: Raw) -> bytes:
        params: Any = msgspec.json.decode(raw) if bytes(raw) else None
        self.called.append((name, params))
        match name:
            case "subtract":
                first, second = (params["minuend"], params["subtrahend"]) if isinstance(params, dict) else params
                return b"%d" % (first - second)
            case "sum":
                return b"%d" % sum(params)
            case "get_data":
                return b'["hello",5]'
            case "update" | "notify_sum" | "notify_hello" | "echo":
                return bytes(raw) or b"null"
            case "large":
                return b'"' + b"x" * (MAX_BATCH_ANSWER_BYTES // 2) + b'"'
            case "sleep":
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    self.cancelled = True
                    raise
            case "missing":
                raise RpcError(NOT_FOUND, "No block 7", fix="The tip is 6.")
            case "refused":
                raise RpcError(REJECTED, "Nonce 3, expected 4", reason="wrong-nonce")
            case "broken":
                raise RuntimeError("the secret path /root/key")
            case "own_timeout":
                raise TimeoutError("a peer's, not ours")
        raise RpcError(METHOD_NOT_FOUND)


def respond(
    message: str | bytes,
    methods: Methods | None = None,
    call_seconds: float = 5.0,
    observed: list[Observation] | None = None,
) -> Any:
    log: list[Observation] = [] if observed is None else observed
    dispatcher = Dispatcher(NAMES, call_seconds=call_seconds, observe=lambda *row: log.append(row))
    answer = asyncio.run(dispatcher.respond(message, methods or Methods(), lambda _size: None))
    return None if answer is None else json.loads(answer)


def without_data(answer: Any) -> Any:
    """The answer as the specification prints it, once `data` is seen to say what to do."""
    if isinstance(answer, list):
        return [without_data(element) for element in answer]
    if isinstance(answer, dict) and "error" in answer:
        error = dict(answer["error"])
        assert error.pop("data")["fix"]
        return {**answer, "error": error}
    return answer


# Section 7 of the specification: request, response. None stands for no response at all.
SPECIFICATION = {
    "positional": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        '{"jsonrpc": "2.0", "result": 19, "id": 1}',
    ),
    "positional, swapped": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        '{"jsonrpc": "2.0", "result": -19, "id": 2}',
    ),
    "named": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        '{"jsonrpc": "2.0", "result": 19, "id": 3}',
    ),
    "named, swapped": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        '{"jsonrpc": "2.0", "result": 19, "id": 4}',
    ),
    "notification": ('{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', None),
    "notification of a method that is not there": ('{"jsonrpc": "2.0", "method": "foobar"}', None),
    "method that is not there": (
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        '{"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "1"}',
    ),
    "invalid JSON": (
        '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}',
    ),
    "invalid request": (
        '{"jsonrpc": "2.0", "method": 1, "params": "bar"}',
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}',
    ),
    "batch, invalid JSON": (
        """[
          {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
          {"jsonrpc": "2.0", "method"
        ]""",
        '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}',
    ),
    "empty batch": (
        "[]",
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}',
    ),
    "invalid batch, not empty": (
        "[1]",
        '[{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}]',
    ),
    "invalid batch": (
        "[1,2,3]",
        """[
          {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},
          {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},
          {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}
        ]""",
    ),
    "batch": (
        """[
          {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
          {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
          {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
          {"foo": "boo"},
          {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
          {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
        ]""",
        """[
          {"jsonrpc": "2.0", "result": 7, "id": "1"},
          {"jsonrpc": "2.0", "result": 19, "id": "2"},
          {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},
          {"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "5"},
          {"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"}
        ]""",
    ),
    "batch of notifications": (
        """[
          {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
          {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}
        ]""",
        None,
    ),
}


@pytest.mark.parametrize(("request_text", "expected"), SPECIFICATION.values(), ids=SPECIFICATION.keys())
@pytest.mark.parametrize("as_bytes", [False, True], ids=["text", "bytes"])
def test_example_of_the_specification(request_text: str, expected: str | None, as_bytes: bool) -> None:
    answer = respond(request_text.encode() if as_bytes else request_text)
    assert without_data(answer) == (None if expected is None else json.loads(expected))


NOT_JSON = {
    "empty": b"",
    "blank": b" \n",
    "NaN": b'{"jsonrpc":"2.0","method":"echo","params":[NaN],"id":1}',
    "infinity": b'{"jsonrpc":"2.0","method":"echo","params":[-Infinity],"id":1}',
    "lone surrogate": rb'{"jsonrpc":"2.0","method":"echo","params":["\ud800"],"id":1}',
    "low surrogate first": rb'{"jsonrpc":"2.0","method":"echo","params":["\udc00\ud800"],"id":1}',
    "surrogate in UTF-8": b'{"jsonrpc":"2.0","method":"echo","params":["\xed\xa0\x80"],"id":1}',
    "not UTF-8": b'{"jsonrpc":"2.0","method":"echo","params":["\xff"],"id":1}',
    "byte order mark": b'\xef\xbb\xbf{"jsonrpc":"2.0","method":"echo","id":1}',
    "UTF-16": '{"jsonrpc":"2.0","method":"echo","id":1}'.encode("utf-16"),
    "two documents": b'{"jsonrpc":"2.0","method":"echo","id":1}{}',
    "trailing comma": b'{"jsonrpc":"2.0","method":"echo","id":1,}',
    "leading zero": b'{"jsonrpc":"2.0","method":"echo","id":01}',
    "comment": b'{"jsonrpc":"2.0","method":"echo","id":1}//',
    "control character": b'{"jsonrpc":"2.0","method":"echo","params":["\n"],"id":1}',
    "deep array": b"[" * 1_000_000,
    "deep object": b'{"a":' * 1_000_000,
    "deep params": b'{"jsonrpc":"2.0","method":"echo","id":1,"params":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("message", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_a_parse_error_and_calls_nothing(message: bytes) -> None:
    methods = Methods()
    expected = {"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": None}
    assert without_data(respond(message, methods)) == expected
    assert methods.called == []


def test_text_with_a_lone_surrogate_is_a_parse_error() -> None:
    assert respond('{"jsonrpc":"2.0","method":"\ud800","id":1}')["error"]["code"] == -32700


def test_no_depth_of_nesting_escapes_as_an_exception() -> None:
    for depth in range(900, 1000):
        params = "[" * depth + "]" * depth
        answer = respond(f'{{"jsonrpc":"2.0","method":"missing","id":1,"params":{params}}}')
        assert answer["error"]["code"] in {-32700, -32600, -32603, NOT_FOUND.code}


INVALID = {
    # name: (request, the id that the answer must carry)
    "a number": ("1", None),
    "a number beyond doubles": ("1e400", None),
    "a string": ('"echo"', None),
    "null": ("null", None),
    "an empty object": ("{}", None),
    "version missing": ('{"method":"echo","id":1}', 1),
    "version 1.0": ('{"jsonrpc":"1.0","method":"echo","id":2}', 2),
    "version a number": ('{"jsonrpc":2.0,"method":"echo","id":"a"}', "a"),
    "method missing": ('{"jsonrpc":"2.0","id":3}', 3),
    "method null": ('{"jsonrpc":"2.0","method":null,"id":4}', 4),
    "id true": ('{"jsonrpc":"2.0","method":"echo","id":true}', None),
    "id an object": ('{"jsonrpc":"2.0","method":"echo","id":{}}', None),
    "id an array": ('{"jsonrpc":"2.0","method":"echo","id":[1]}', None),
    "id a fraction": ('{"jsonrpc":"2.0","method":"echo","id":1.5}', None),
    "id a whole fraction": ('{"jsonrpc":"2.0","method":"echo","id":1.0}', None),
    "id beyond doubles": ('{"jsonrpc":"2.0","method":"echo","id":1e400}', None),
    "id of 5,000 digits": ('{"jsonrpc":"2.0","method":"echo","id":' + "9" * 5000 + "}", None),
    "params a string": ('{"jsonrpc":"2.0","method":"echo","params":"bar","id":5}', 5),
    "params a number": ('{"jsonrpc":"2.0","method":"echo","params":7,"id":6}', 6),
    "params null": ('{"jsonrpc":"2.0","method":"echo","params":null,"id":7}', 7),
    "params true, no id": ('{"jsonrpc":"2.0","method":"echo","params":true}', None),
    "an unknown member": ('{"jsonrpc":"2.0","method":"echo","parms":[1],"id":8}', 8),
    "a repeated method": ('{"jsonrpc":"2.0","method":"echo","method":"sum","id":9}', None),
    "a repeated id": ('{"jsonrpc":"2.0","method":"echo","id":1,"id":2}', None),
    "a repeated member, escaped": (r'{"jsonrpc":"2.0","method":"echo","\u006dethod":"sum","id":9}', None),
}


@pytest.mark.parametrize(("message", "request_id"), INVALID.values(), ids=INVALID.keys())
def test_invalid_request_says_why_and_calls_nothing(message: str, request_id: object) -> None:
    methods = Methods()
    answer = respond(message, methods)
    expected = {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": request_id}
    assert without_data(answer) == expected
    assert methods.called == []
    # The same inside a batch does not spoil its neighbour.
    both = respond(f'[{message},{{"jsonrpc":"2.0","method":"get_data","id":0}}]')
    assert [without_data(both[0]), both[1]["result"]] == [expected, ["hello", 5]]


@pytest.mark.parametrize(
    "request_id",
    ["null", "0", "-1", '""', '"é\\n"', "9007199254740993", "18446744073709551616", "-" + "9" * 400],
)
def test_id_comes_back_digit_for_digit(request_id: str) -> None:
    message = f'{{"id": {request_id} , "jsonrpc": "2.0", "method": "get_data"}}'
    dispatcher = Dispatcher(NAMES, call_seconds=5, observe=lambda *_row: None)
    answer = asyncio.run(dispatcher.respond(message, Methods(), lambda _size: None))
    assert answer is not None
    assert f'"id":{request_id}' in answer.decode()


def test_null_id_is_a_request_and_not_a_notification() -> None:
    answer = respond('{"jsonrpc":"2.0","method":"get_data","id":null}')
    assert answer == {"jsonrpc": "2.0", "result": ["hello", 5], "id": None}


def test_huge_integers_in_params_arrive_whole() -> None:
    methods = Methods()
    respond('{"jsonrpc":"2.0","method":"echo","params":[' + "9" * 400 + '],"id":1}', methods)
    assert methods.called == [("echo", [10**400 - 1])]


def test_absent_and_empty_params_differ() -> None:
    methods = Methods()
    respond(
        '[{"jsonrpc":"2.0","method":"echo"},{"jsonrpc":"2.0","method":"echo","params":[]},'
        '{"jsonrpc":"2.0","method":"echo","params":{}}]',
        methods,
    )
    assert methods.called == [("echo", None), ("echo", []), ("echo", {})]


def test_error_of_a_notification_is_not_answered() -> None:
    observed: list[Observation] = []
    assert respond('{"jsonrpc":"2.0","method":"missing"}', observed=observed) is None
    assert [row[2] for row in observed] == ["NOT_FOUND"]


def test_error_carries_code_message_fix_and_reason() -> None:
    assert respond('{"jsonrpc":"2.0","method":"missing","id":1}')["error"] == {
        "code": -32001,
        "message": "No block 7",
        "data": {"name": "NOT_FOUND", "fix": "The tip is 6."},
    }
    assert respond('{"jsonrpc":"2.0","method":"refused","id":1}')["error"] == {
        "code": -32002,
        "message": "Nonce 3, expected 4",
        "data": {"name": "REJECTED", "fix": REJECTED.doc, "reason": "wrong-nonce"},
    }


def test_internal_error_leaks_nothing_and_is_found_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        error = respond('{"jsonrpc":"2.0","method":"broken","id":1}')["error"]
    assert (error["code"], error["message"]) == (-32603, "Internal error")
    assert "secret" not in json.dumps(error)
    assert error["data"]["incident"] in error["data"]["fix"]
    assert error["data"]["incident"] in caplog.text
    assert "the secret path" in caplog.text


def test_late_call_is_cancelled() -> None:
    methods = Methods()
    begin = time.monotonic()
    answer = respond('{"jsonrpc":"2.0","method":"sleep","id":1}', methods, call_seconds=0.05)
    assert answer["error"]["data"]["name"] == "TIMEOUT"
    assert methods.cancelled
    assert time.monotonic() - begin < 2


def test_a_handlers_own_timeout_is_a_fault_not_a_late_call() -> None:
    assert respond('{"jsonrpc":"2.0","method":"own_timeout","id":1}')["error"]["code"] == -32603


def test_calls_of_a_batch_share_one_deadline() -> None:
    methods = Methods()
    batch = [{"jsonrpc": "2.0", "method": name, "id": name} for name in ("get_data", "sleep", "echo", "sum")]
    answers = respond(json.dumps(batch), methods, call_seconds=0.05)
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32004, -32004, -32004]
    assert [name for name, _ in methods.called] == ["get_data", "sleep"]


def test_batch_runs_in_order() -> None:
    methods = Methods()
    respond(json.dumps([{"jsonrpc": "2.0", "method": "echo", "params": [i]} for i in range(20)]), methods)
    assert methods.called == [("echo", [i]) for i in range(20)]


def test_batch_has_a_limit() -> None:
    def batch(size: int) -> str:
        return json.dumps([{"jsonrpc": "2.0", "method": "sum", "params": [i], "id": i} for i in range(size)])

    assert [answer["result"] for answer in respond(batch(MAX_BATCH))] == list(range(MAX_BATCH))
    methods = Methods()
    refused = respond(batch(MAX_BATCH + 1), methods)
    assert refused["error"]["data"]["name"] == "LIMIT"
    assert refused["id"] is None
    assert methods.called == []


def test_batch_of_millions_is_refused_without_counting_to_the_end() -> None:
    raw = Raw(b"[" + b"1," * 2_000_000 + b"1]")
    begin = time.perf_counter()
    with pytest.raises(msgspec.ValidationError):
        decode_array(raw, MAX_BATCH)
    assert time.perf_counter() - begin < 0.01


def test_answer_of_a_batch_has_a_limit() -> None:
    batch = [{"jsonrpc": "2.0", "method": "large", "id": i} for i in range(4)]
    answers = respond(json.dumps(batch))
    assert ["result" in answer for answer in answers] == [True, True, False, False]
    assert answers[2]["error"]["code"] == LIMIT.code


def test_each_call_is_observed_once_under_a_bounded_label() -> None:
    observed: list[Observation] = []
    respond(
        '[{"jsonrpc":"2.0","method":"get_data","id":1},{"jsonrpc":"2.0","method":"made up","id":2},7,'
        '{"jsonrpc":"2.0","method":"missing"},{"jsonrpc":"2.0","method":"broken","id":3}]',
        observed=observed,
    )
    respond("{", observed=observed)
    assert [(method, outcome) for method, _, outcome in observed] == [
        ("get_data", "OK"),
        (NO_METHOD, "METHOD_NOT_FOUND"),
        (NO_METHOD, "INVALID_REQUEST"),
        ("missing", "NOT_FOUND"),
        ("broken", "INTERNAL_ERROR"),
        (NO_METHOD, "PARSE_ERROR"),
    ]
    assert all(0 <= seconds < 5 for _, seconds, _ in observed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=10,
)
envelopes = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | json_values,
        "method": st.sampled_from(["echo", "missing", "foobar"]) | json_values,
        "params": json_values,
        "id": json_values,
    },
)
messages = st.binary(max_size=64) | st.one_of(json_values, envelopes, st.lists(envelopes, max_size=4)).map(
    lambda value: json.dumps(value).encode()
)


@settings(max_examples=300, deadline=None)
@given(messages)
def test_whatever_arrives_the_answer_is_well_formed(message: bytes) -> None:
    answer = respond(message)
    for response in answer if isinstance(answer, list) else [] if answer is None else [answer]:
        assert response["jsonrpc"] == "2.0"
        assert ("result" in response) != ("error" in response)
        assert response["id"] is None or type(response["id"]) in (str, int)
        assert "error" not in response or response["error"]["code"] in {kind.code for kind in ERRORS}


def test_table_of_errors() -> None:
    assert [(kind.code, kind.name) for kind in ERRORS] == [
        (-32700, "PARSE_ERROR"),
        (-32600, "INVALID_REQUEST"),
        (-32601, "METHOD_NOT_FOUND"),
        (-32602, "INVALID_PARAMS"),
        (-32603, "INTERNAL_ERROR"),
        (-32001, "NOT_FOUND"),
        (-32002, "REJECTED"),
        (-32003, "LIMIT"),
        (-32004, "TIMEOUT"),
        (-32005, "NOT_READY"),
        (-32006, "UNAVAILABLE"),
        (-32007, "FORBIDDEN"),
    ]
    assert all(kind.doc.endswith(".") and 400 <= kind.status < 600 for kind in ERRORS)


def test_names_of_no_method_never_become_labels_whatever_ends_their_calls() -> None:
    """A stranger's words in a label stay in the metrics' memory for as long as the node runs."""
    observed: list[Observation] = []
    batch = [{"jsonrpc": "2.0", "method": "large", "id": i} for i in range(3)]
    batch += [{"jsonrpc": "2.0", "method": f"made_up_{i}", "id": i} for i in range(5)]
    respond(json.dumps(batch), observed=observed)  # the allowance for answers is used up before the made-up ones
    assert [row[2] for row in observed[-5:]] == ["LIMIT"] * 5
    slow = [{"jsonrpc": "2.0", "method": "sleep", "id": 0}, {"jsonrpc": "2.0", "method": "made_up", "id": 1}]
    respond(json.dumps(slow), call_seconds=0.05, observed=observed)  # and here the time is
    assert observed[-1][2] == "TIMEOUT"
    respond('{"jsonrpc":"2.0","method":"made_up","id":1}', observed=observed)
    assert {row[0] for row in observed} == {"large", "sleep", NO_METHOD}


def test_a_batch_lets_others_in_between_its_calls() -> None:
    """A hundred names of no method await nothing: without a pause they would hold up everybody else at once."""

    async def story() -> None:
        dispatcher = Dispatcher(NAMES, call_seconds=10, observe=lambda *_: None)
        turns = 0

        async def refuse(name: str, raw: Raw) -> bytes:
            raise RpcError(METHOD_NOT_FOUND)

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        batch = [{"jsonrpc": "2.0", "id": number, "method": f"no{number}"} for number in range(100)]
        answer = await dispatcher.respond(json.dumps(batch), refuse, lambda _size: None)
        task.cancel()
        assert answer is not None
        assert len(json.loads(answer)) == 100
        assert turns >= 100

    asyncio.run(story())
