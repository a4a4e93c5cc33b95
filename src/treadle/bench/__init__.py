"""`treadle bench`: workloads with trivial bodies, each beside the machine's own limit measured in the same call."""
