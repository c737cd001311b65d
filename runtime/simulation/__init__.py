"""A virtual cluster on a virtual clock: the scheduler, the instances' cores and the gateway's journal that live processes run, joined by
simulated processes, streams and devices. No JAX, no gRPC, no threads; one seed decides everything that happens."""
