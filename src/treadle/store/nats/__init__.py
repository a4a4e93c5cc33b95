"""The NATS store: a workflow engine's state in JetStream, for any number of processes on any machines."""

from treadle.store.nats.store import NatsStore

__all__ = ["NatsStore"]
