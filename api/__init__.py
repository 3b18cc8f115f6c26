"""The JSON-RPC contract between a node and whoever asks it, declared once: answers, parameters, errors, topics, files.

A node builds these structs and a client decodes them, so their bounds are what a client relies on. Fields that a newer
node adds are passed over. Bytes are lower-case hexadecimal, addresses bech32m, amounts integers of grains; what does
not apply is null.
"""
