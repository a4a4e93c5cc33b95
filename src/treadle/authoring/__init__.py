"""Ways to write a workflow: decorators, builder, and the codec of values."""
