"""The runtime: engine, worker, sweeper and client, on the ports of `treadle.ports`."""
