"""Which draft models a worker takes for which models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from triptych.models.hub.bundle import ModelBundle, open_model
from triptych.models.hub.errors import ModelNotFoundError
from triptych.models.hub.resolve import resolve_model
from triptych.models.text.toy import toy_tokenizer
from triptych.models.weights.dummy import DummySource
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.instance.speculation import Speculation
from triptych.runtime.worker.build import compatibility, open_worker_model
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.draft_parts import vocabulary_problem

NOWHERE = Path("/nonexistent")


def config(
    draft: str | None, model: str = "dummy:toy", role: Role = Role.DECODE, media_pages: int | None = None
) -> WorkerConfig:
    return WorkerConfig(
        name="w",
        scheduler="s",
        instances=(InstancePlan("d", frozenset({role})),),
        model=model,
        cache=NOWHERE,
        served_model_name="m",
        media_pages=media_pages,
        speculation=Speculation(2, model=draft),
    )


def bundle(name: str) -> ModelBundle:
    return open_model(resolve_model(name, NOWHERE))


def test_a_worker_that_decodes_opens_the_draft_model_and_no_other_does() -> None:
    opened = open_worker_model(config("dummy:toy-draft"))
    assert opened.draft is not None and opened.draft.config.name == "toy-draft"
    assert open_worker_model(config("dummy:toy-draft", role=Role.PREFILL)).draft is None
    assert open_worker_model(config(None)).draft is None
    random = open_worker_model(replace(config("dummy:toy-draft"), load_dummy=True)).draft
    assert random is not None and isinstance(random.tensor_source, DummySource)


def test_kv_is_the_same_with_any_draft_model_and_with_none() -> None:
    plain, drafting = config(None), config("dummy:toy-draft")
    assert compatibility(plain, open_worker_model(plain)) == compatibility(drafting, open_worker_model(drafting))


@pytest.mark.parametrize(
    ("draft", "model", "wrong"),
    [
        ("dummy:smollm2-135m", "dummy:toy", "its vocabulary has 49152 tokens, the target's 260"),
        ("dummy:toy-whisper", "dummy:toy", "is a speech model"),
        ("dummy:toy", "dummy:toy-vlm", "guesses for text only, and dummy:toy-vlm takes media"),
        ("dummy:toy", "dummy:toy-whisper", "guesses for text only"),
    ],
)
def test_what_cannot_guess_is_refused_before_anything_is_loaded(draft: str, model: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        open_worker_model(config(draft, model))


def test_a_draft_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelNotFoundError, match="no preset 'nobody'"):
        open_worker_model(config("dummy:nobody"))


def test_a_model_that_sees_is_guessed_for_where_it_takes_no_media() -> None:
    target = bundle("dummy:toy-vlm")
    drafting = config("dummy:toy-vlm", "dummy:toy-vlm", media_pages=0)
    opened = open_worker_model(drafting).draft
    assert opened is not None and opened.config.vocab_size == target.config.vocab_size


def test_tokens_must_mean_the_same_to_both() -> None:
    target, draft = bundle("dummy:toy"), bundle("dummy:toy-draft")
    assert vocabulary_problem(target, draft) is None
    assert vocabulary_problem(target, replace(draft, tokenizer=None)) is None, "random weights mean nothing"
    other = toy_tokenizer()
    other._backend.add_tokens(["<more>"])
    target = replace(target, config=replace(target.config, vocab_size=261))
    draft = replace(draft, config=replace(draft.config, vocab_size=261), tokenizer=other)
    assert vocabulary_problem(target, draft) == "token 260 is '<more>' to it, None to the target"
