"""The draft model of an instance being built: opened and compared with the target, then loaded onto the same mesh."""

from __future__ import annotations

import logging

from jax.sharding import Mesh

from triptych.models.hub.bundle import ModelBundle, open_model
from triptych.models.hub.resolve import resolve_model
from triptych.models.speech.bundle import is_speech
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.media_parts import WorkerModel, takes_media

log = logging.getLogger(__name__)


def open_draft(config: WorkerConfig, model: WorkerModel) -> ModelBundle | None:
    """The draft model that `config` names, if instances of this process decode. Raises ConfigError if it cannot guess for `model`."""
    spec = None if config.speculation is None else config.speculation.model
    if spec is None or not any(Role.DECODE in plan.possible for plan in config.instances):
        return None
    if takes_media(config, model):
        raise ConfigError(
            f"a draft model guesses for text only, and {config.model} takes media: serve a text model, set --media-pages 0 if it can do "
            "without them, or guess by --speculative ngram"
        )
    resolved = resolve_model(spec, config.cache, progress=lambda text: log.info("%s", text))
    if is_speech(resolved):
        raise ConfigError(
            f"the draft model {spec} is a speech model; expected a text model with the target's vocabulary"
        )
    draft = open_model(resolved)
    problem = vocabulary_problem(model.bundle, draft)  # pyright: ignore[reportArgumentType]
    if problem is not None:
        raise ConfigError(f"the draft model {spec} cannot guess for {config.model}: {problem}")
    if draft.config.max_position < min(config.max_model_len, model.bundle.config.max_position):
        log.warning(
            "the draft model %s was made for %d tokens; it will hardly be right beyond", spec, draft.config.max_position
        )
    return draft


def vocabulary_problem(target: ModelBundle, draft: ModelBundle) -> str | None:
    """Why a token id may not mean the same to both models; None if it does. Models without a tokenizer are compared by size alone."""
    sizes = draft.config.vocab_size, target.config.vocab_size
    if sizes[0] != sizes[1]:
        return f"its vocabulary has {sizes[0]} tokens, the target's {sizes[1]}"
    mine, theirs = draft.tokenizer, target.tokenizer
    if mine is None or theirs is None:
        return None
    differing = (token for token in range(sizes[0]) if mine.piece(token) != theirs.piece(token))
    token = next(differing, None)
    return (
        None
        if token is None
        else f"token {token} is {mine.piece(token)!r} to it, {theirs.piece(token)!r} to the target"
    )


def load_draft(config: WorkerConfig, plan: InstancePlan, model: WorkerModel, mesh: Mesh) -> LoadedDecoder | None:
    """The draft model's weights on an instance's mesh, stored as the target's are; None where nothing decodes, or no draft model guesses."""
    if model.draft is None or Role.DECODE not in plan.possible:
        return None
    return load_decoder(model.draft.config, model.draft.tensor_source, mesh, config.dtype, config.weights)
