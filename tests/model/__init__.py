"""The rules once more, from the words of docs/protocol.md, as plainly as they can be written: to be compared with."""
