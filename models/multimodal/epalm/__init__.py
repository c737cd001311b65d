"""eP-ALM (arXiv 2303.11403) over SmolLM2-135M-Instruct and DINOv2-small: everything frozen but one linear layer and a soft prompt.

The encoder's class tokens after its last LEVELS layers, each projected by the same linear layer, are the inputs of the language model's inner
layers at one position: layers FIRST to LAST - 1 in LEVELS equal steps, the lowest class token first. Below FIRST that position has a trained
embedding, as the soft prompt before it has; the published model hides it there (docs/decisions/020-ep-alm.md).
`trained.safetensors` and `training.json` as for the demo model beside this one; `tools/train_projector.py --method ep-alm` makes both.
"""

from __future__ import annotations

from triptych.models.config import ModelConfig
from triptych.models.multimodal.config import MediaMarkers, MultimodalConfig
from triptych.models.multimodal.demo_model import DINO_LAYERS, IMAGE_TOKEN, SIDE, DemoModel, dinov2_small
from triptych.models.multimodal.plans import CropProcessing
from triptych.models.vision.config import ConnectorConfig, VisionConfig

__all__ = ["DEMO_EPALM", "injections"]

LEVELS = 6
FIRST, LAST = 6, 30
_CONNECTOR = ConnectorConfig(outputs=576, hidden_size=None, levels=LEVELS)
# Special tokens of the vocabulary that no conversation has.
_PROMPT = (
    "<repo_name>",
    "<reponame>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    IMAGE_TOKEN,
)


def injections(first: int, last: int, levels: int) -> tuple[tuple[int, int], ...]:
    """(layer, level) for layers first to last - 1: equal steps, and what is left over has the highest level."""
    step = (last - first) // levels
    return tuple((layer, min((layer - first) // step, levels - 1)) for layer in range(first, last))


def _vision(connector: ConnectorConfig | None) -> VisionConfig:
    return dinov2_small(connector, tuple(range(DINO_LAYERS - LEVELS + 1, DINO_LAYERS + 1)), "class")


def _build(text: ModelConfig, image_id: int) -> MultimodalConfig:
    return MultimodalConfig(
        text=text,
        vision=_vision(_CONNECTOR),
        processing=CropProcessing((SIDE, SIDE), shortest=SIDE),
        markers=MediaMarkers(image_id, "".join(_PROMPT)),
        injections=injections(FIRST, LAST, LEVELS),
    )


DEMO_EPALM = DemoModel("demo-epalm", __name__, _vision, _CONNECTOR, _build, prompt=_PROMPT)
