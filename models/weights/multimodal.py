"""The language model's tensors in a vision-language checkpoint, under the names that a decoder alone would have."""

from triptych.models.errors import WeightsError
from triptych.models.weights.source import TensorSource
from triptych.models.weights.views import View, ViewSource

_ANCHOR = "embed_tokens.weight"

# What a decoder's names begin with, below its prefix; encoders in the same file have other ones.
_BELOW = ("embed_tokens.", "layers.", "norm.")


def text_source(source: TensorSource) -> TensorSource:
    """The decoder's tensors only, wherever the checkpoint has them. Raises WeightsError if there is no decoder, or two."""
    stored = source.names()
    found = [name for name in stored if name == _ANCHOR or name.endswith("." + _ANCHOR)]
    if len(found) != 1:
        raise WeightsError(f"{len(found)} tensors are called {_ANCHOR!r}; one is needed to find the language model by")
    prefix = found[0].removesuffix(_ANCHOR)
    views = {
        "model." + name.removeprefix(prefix): View(name)
        for name in stored
        if name.startswith(prefix) and name.removeprefix(prefix).startswith(_BELOW)
    }
    for name in stored:
        if name == "lm_head.weight" or name.endswith(".lm_head.weight"):
            views["lm_head.weight"] = View(name)
    return ViewSource(source, views)
