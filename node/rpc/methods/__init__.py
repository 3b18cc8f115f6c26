"""The RPC methods, one module a prefix, and the table that holds them all."""
