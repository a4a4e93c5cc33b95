"""Stores: where runs live. `base` is the port, `committer` groups writes, one module a store."""
