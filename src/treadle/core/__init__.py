"""The pure kernel: plans, events and the one state machine. No clock, IO, threads or user code live here."""
