"""Errors of the model side. Each is a ValueError, so that callers who know nothing of models still see a bad input."""


class UnsupportedModelError(ValueError):
    """The model's architecture, or a feature that its configuration asks for, is not one that is computed here."""


class WeightsError(ValueError):
    """The stored weights do not fit the model: a tensor is missing, unexpected or misshapen, or a file is broken."""


class MediaShapeError(ValueError):
    """An image or a video has a size that the model cannot take, or a prompt does not fit its media."""


class QuantisationError(ValueError):
    """A format of weights is unknown, or the model's sizes or the mesh do not fit it."""
