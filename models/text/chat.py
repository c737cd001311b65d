"""Chat templates: messages to the prompt text that a model was trained on.

A template is a jinja program that comes with a model, so it is run as a stranger's program: in jinja's immutable
sandbox (no attribute escapes, no mutation) and under a budget (see `budget.py`) of steps, text size and time. Rendering
follows Hugging Face: `trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}` blocks, and the names
`raise_exception`, `strftime_now`, `tojson`, `bos_token`, `eos_token`, `add_generation_prompt`, `tools`, `documents`.
Requests never bring a template, only messages and variables.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from triptych.models.text.budget import Budget, BudgetedEnvironment, RenderLimits
from triptych.models.text.messages import has_media, part_messages, plain_messages
from triptych.models.text.weave import budgeted_program

__all__ = ["ChatTemplate", "ChatTemplateError", "ChatTemplateRefusal"]

_MAX_TIME_LAYOUT = 100  # "%A, %d %B %Y" is a long one
_PROBE = "a probe of the form"


class ChatTemplateError(ValueError):
    """The template does not compile, breaks the sandbox or its budget, or fails on these messages."""


class ChatTemplateRefusal(ChatTemplateError):
    """The template itself refused the messages (`raise_exception`), for example because roles do not alternate."""


class ChatTemplate:
    """A compiled chat template. Immutable; each rendering has a budget of its own.

    Args:
        source: the jinja source from the model.
        bos_token, eos_token: their text, "" if the model has none.
        limits: what one rendering may use.
        now: the clock behind `strftime_now`.

    Raises ChatTemplateError if the source does not compile.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        limits: RenderLimits | None = None,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        self._limits = limits or RenderLimits()
        self._now = now
        try:
            self._program = budgeted_program(_environment(self._budget()), source)
        except Exception as error:  # parsing a hostile source may fail in any way, e.g. RecursionError
            raise ChatTemplateError(f"the model's chat template does not compile: {_reason(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        placeholders: Mapping[str, str] | None = None,
    ) -> str:
        """The prompt for `messages` (see `plain_messages` for their form).

        `variables` are further names the model's template knows, e.g. `{"enable_thinking": False}` for Qwen 3.
        `placeholders` are the types of media parts that the model takes, and what stands for each in a prompt.

        Raises InvalidMessageError, ChatTemplateRefusal or ChatTemplateError.
        """
        plain = plain_messages(messages, placeholders)
        if placeholders:
            # A template of a multimodal model may know parts only, or text only; what has media is given as parts where it knows them.
            parted = part_messages(messages, placeholders)
            plain = [
                parts if (has_media(parts) and self._takes_parts) or not self._takes_text else text
                for text, parts in zip(plain, parted, strict=True)
            ]
        return self._render(plain, add_generation_prompt, variables)

    @cached_property
    def _takes_parts(self) -> bool:
        return self._shows([{"type": "text", "text": _PROBE}])

    @cached_property
    def _takes_text(self) -> bool:
        return self._shows(_PROBE) or not self._takes_parts

    def _shows(self, content: Any) -> bool:
        """Whether the text of such a content comes out, and no Python or JSON around it."""
        try:
            text = self._render([{"role": "user", "content": content}], True, None)
        except ChatTemplateError:
            return False
        return _PROBE in text and "'text'" not in text and '"text"' not in text

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
    ) -> str:
        budget = self._budget()
        environment = _environment(budget)
        environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": self._formatted_time,
        }
        names = {"tools": None, "documents": None} | dict(variables or {}) | self._tokens
        names |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            template = jinja2.Template.from_code(environment, self._program, environment.make_globals(None))
            return "".join(template.generate(names))
        except ChatTemplateRefusal:
            raise
        except Exception as error:  # a template is a program: it can raise anything
            raise ChatTemplateError(f"the model's chat template failed: {_reason(error)}") from error

    def _budget(self) -> Budget:
        return Budget(self._limits)

    def _formatted_time(self, layout: str) -> str:
        if len(layout) > _MAX_TIME_LAYOUT:
            raise ChatTemplateError(f"a time layout of more than {_MAX_TIME_LAYOUT} characters")
        return self._now().strftime(layout)


def _refuse(message: str) -> str:
    raise ChatTemplateRefusal(f"the model's chat template refused the messages: {message}")


def _environment(budget: Budget) -> BudgetedEnvironment:
    environment = BudgetedEnvironment(budget, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = environment.checked_filter("tojson", _tojson)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face writes it: no HTML escapes, non-ASCII text as it is."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; in serving it is its content."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
