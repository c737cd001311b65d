"""What clients talk to. It validates and tokenises, hands requests to the scheduler, merges the token streams of all instances into one
journal per request, and turns tokens into text. It holds no model and imports no JAX; any number of gateways may run."""
