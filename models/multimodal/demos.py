"""The demo models, by name."""

from __future__ import annotations

from triptych.models.multimodal.demo import DEMO_VLM
from triptych.models.multimodal.demo_model import DemoModel
from triptych.models.multimodal.epalm import DEMO_EPALM

DEMOS: dict[str, DemoModel] = {model.name: model for model in (DEMO_VLM, DEMO_EPALM)}
