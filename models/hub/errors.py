"""Errors of finding and fetching models."""


class ModelFetchError(RuntimeError):
    """A model could not be fetched; the message says why and what to do instead."""


class ModelNotFoundError(ValueError):
    """A model name means nothing here; the message lists what it could have been."""
