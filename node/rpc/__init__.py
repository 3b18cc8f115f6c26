"""The node's JSON-RPC 2.0 interface over HTTP and WebSocket.

`jsonrpc` knows envelopes, `registry` knows the table of methods, `server` knows the transport; none of them knows
the chain. The chain's methods stand beside them and are declared against `registry.Table`.
"""
