"""Finding a model: what a name given by a user means, fetching it if need be, and opening its parts. Imports no jax."""
