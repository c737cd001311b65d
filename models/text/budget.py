"""Jinja under a budget: a stranger's template ends soon, with an answer or an error.

Jinja's sandbox stops a template from reaching Python; it does not stop `"a" * 10**10`, nested loops over big ranges, or
a macro that calls itself twice. Here every construct that can repeat or allocate is metered, so that both time and
memory are bounded:

- loops, macros and calls cost one unit of work each turn (`weave.py` puts a statement into their bodies when the
  template is compiled);
- every operator, and every list, tuple, dict or text that an expression builds, is weighed before or right after it is
  made. Weights are deep and count a shared part each time it is reachable, so a value's printed form is never much
  larger than its weight;
- written text is counted, inside macros and `set` blocks too;
- filters, and methods of strings and containers, come from a list of those that chat templates use, all with bounded
  cost.

A budget belongs to one rendering: the environment holds it, and the compiled program (a code object) is shared between
environments.
"""

from __future__ import annotations

import functools
import re
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["Budget", "BudgetExceededError", "BudgetedEnvironment", "RenderLimits"]


class BudgetExceededError(RuntimeError):
    """A rendering used more than its limits allow."""


@dataclass(frozen=True)
class RenderLimits:
    """What one rendering may use. The defaults leave a 128k-token conversation of a thousand messages well inside.

    Attributes:
        max_source_chars: length of the template; the longest published ones are below 50,000.
        max_value_chars: weight of any one value: its characters, and 16 for each item.
        max_output_chars: text written; text that passes through a macro counts again.
        max_work: loop turns and calls, plus one for each 64 characters made.
        max_range: items of one `range()`.
        max_seconds: processor time of the rendering thread: a busy machine refuses nobody.
    """

    max_source_chars: int = 200_000
    max_value_chars: int = 4_000_000
    max_output_chars: int = 8_000_000
    max_work: int = 4_000_000
    max_range: int = 10_000
    max_seconds: float = 2.0


_CHARS_PER_WORK = 64
_CHARS_PER_ITEM = 16  # an item of a list costs about as much memory and time to walk as this much text
_TURNS_PER_CLOCK_READ = 64  # reading the clock costs about as much as a loop turn
_MAX_INTEGER_BITS = 4096
_MAX_WIDTH = 100  # indentation, decimals, field widths


class Budget:
    """The running account of one rendering; each method raises BudgetExceededError once a limit is passed."""

    def __init__(self, limits: RenderLimits) -> None:
        self.limits = limits
        self._deadline = time.thread_time() + limits.max_seconds
        self._work = 0
        self._output = 0
        self._next_clock_read = 0

    def turn(self, work: int = 1) -> None:
        self._work += work
        if self._work > self.limits.max_work:
            raise BudgetExceededError(f"more than {self.limits.max_work} units of work")
        if self._work >= self._next_clock_read:
            self._next_clock_read = self._work + _TURNS_PER_CLOCK_READ
            if time.thread_time() > self._deadline:
                raise BudgetExceededError(f"more than {self.limits.max_seconds} s")

    def write(self, chars: int) -> None:
        self._output += chars
        if self._output > self.limits.max_output_chars:
            raise BudgetExceededError(f"more than {self.limits.max_output_chars} characters written")
        self.turn(1 + chars // _CHARS_PER_WORK)

    def reserve(self, weight: int) -> None:
        """Account for a value of this weight."""
        if weight > self.limits.max_value_chars:
            raise BudgetExceededError(f"a value of more than {self.limits.max_value_chars} characters (16 for an item)")
        self.turn(1 + weight // _CHARS_PER_WORK)

    def weigh(self, value: Any) -> int:
        """Characters, and 16 for each item, all the way down; stops early above the limit."""
        if isinstance(value, str):
            return len(value)
        total, stack = 0, [value]
        while stack and total <= self.limits.max_value_chars:
            item = stack.pop()
            total += _CHARS_PER_ITEM
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, Mapping):
                stack += item.keys()
                stack += item.values()
            elif isinstance(item, list | tuple | set | frozenset):
                stack += item
        return total


class _OpaqueNamespace(Namespace):
    """A namespace can hold itself, so printing its content could be unbounded."""

    def __repr__(self) -> str:
        return "<namespace>"


# fmt: off
_FILTERS = frozenset(
    (
        "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "indent",
        "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
        "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum", "title", "trim",
        "truncate", "unique", "upper",
    )
)
_STR_METHODS = frozenset(
    (
        "capitalize", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isdigit", "islower",
        "isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
        "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
        "title", "upper",
    )
)
# fmt: on
_CONTAINER_METHODS = frozenset(("count", "get", "index", "items", "keys", "values"))


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with a meter. Use each instance for one rendering."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, budget: Budget, *, extensions: Sequence[Any]) -> None:
        # optimized=False: constant expressions must not be evaluated, unmetered, while compiling
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, cache_size=0, extensions=extensions)
        self.budget = budget
        self.globals = {"range": self._range, "namespace": _OpaqueNamespace, "dict": dict}
        self.filters = {name: self.checked_filter(name, self.filters[name]) for name in _FILTERS}

    # -- called by what `weave.py` puts into the compiled template

    def metered_turn(self) -> str:
        self.budget.turn()
        return ""

    def metered_data(self, chars: int) -> str:
        self.budget.write(chars)
        return ""

    def metered_output(self, value: Any) -> Any:
        self.budget.write(self.budget.weigh(value))
        return value

    def metered_value(self, value: Any) -> Any:
        self.budget.reserve(self.budget.weigh(value))
        return value

    def metered_operand(self, value: Any) -> Any:
        self.budget.turn(1 + (len(value) if isinstance(value, str | list | tuple | dict) else 0) // _CHARS_PER_WORK)
        return value

    def metered_concat(self, *values: Any) -> str:
        self.budget.reserve(sum(self.budget.weigh(value) for value in values))
        return "".join(map(str, values))

    # -- what the sandbox asks

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, Mapping | list | tuple):
            return attr in _CONTAINER_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._check_operands(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int):
            self._check_bits(result.bit_length())
        return self.metered_value(result)

    def call(__self, __context: Context, __obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # names as in jinja
        if isinstance(__obj, types.MethodType) and __obj.__self__ is __self:
            return __obj(*args)  # woven in; jinja adds bookkeeping keywords to calls inside loops and blocks
        __self.budget.turn()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            __self._check_method(method.__name__, owner, args, kwargs)
        return __self._made(super().call(__context, __obj, *args, **kwargs))

    # -- the checks

    def checked_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter with its cost checked before and its result weighed after; lazy results become lists."""
        passed = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self._check_filter(name, args[passed:], kwargs)
            return self._made(function(*args, **kwargs))

        return checked

    def _made(self, result: Any) -> Any:
        if isinstance(result, types.GeneratorType | map | reversed | filter):
            items = []
            for item in result:
                self.budget.turn()
                items.append(item)
            result = items
        return self.metered_value(result)

    def _check_operands(self, operator: str, left: Any, right: Any) -> None:
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                    self.budget.reserve(self.budget.weigh(sequence) * max(count, 0))
        elif operator == "+" and isinstance(left, str | list | tuple):
            self.budget.reserve(self.budget.weigh(left) + self.budget.weigh(right))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, (right,))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() * abs(right))

    def _check_bits(self, bits: int) -> None:
        if bits > _MAX_INTEGER_BITS:
            raise BudgetExceededError(f"an integer of more than {_MAX_INTEGER_BITS} bits")

    def _check_method(self, name: str, owner: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.metered_operand(owner)
        if name == "replace":
            self._check_replace(owner, *args[:2])
        elif name == "join" and args:
            self._check_join(args[0], owner)
        elif name == "format":
            self._check_format(owner, (args, kwargs))

    def _check_filter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            self.metered_operand(args[0])
        options = [*args[1:], *kwargs.values()]
        if name == "replace" and isinstance(args[0], str):
            old, new = [*options, "", ""][:2] if not kwargs else (kwargs.get("old", ""), kwargs.get("new", ""))
            self._check_replace(args[0], old, new)
        elif name == "join":
            self._check_join(args[0], kwargs.get("d", args[1] if len(args) > 1 else ""))
        elif name in ("indent", "round", "tojson"):
            if any(isinstance(option, int) and abs(option) > _MAX_WIDTH for option in options):
                raise BudgetExceededError(f"a width above {_MAX_WIDTH}")
            if any(isinstance(option, str | tuple | list) and len(option) > _MAX_WIDTH for option in options):
                raise BudgetExceededError(f"an indentation or separator longer than {_MAX_WIDTH}")
            if name == "indent" and isinstance(args[0], str):
                self.budget.reserve(len(args[0]) + (args[0].count("\n") + 1) * _MAX_WIDTH)
        elif name == "sum" and any(not isinstance(item, int | float) for item in [*args[0], *options]):
            raise SecurityError("sum takes numbers only; summing lists takes quadratic time")

    def _check_replace(self, text: str, old: Any = "", new: Any = "") -> None:
        if isinstance(old, str) and isinstance(new, str):
            self.budget.reserve(len(text) + text.count(old) * len(new))

    def _check_join(self, parts: Any, separator: Any) -> None:
        count = len(parts) if isinstance(parts, str | list | tuple | Mapping) else self.budget.limits.max_value_chars
        self.budget.reserve(self.budget.weigh(parts) + count * self.budget.weigh(separator))

    def _check_format(self, layout: str, values: Any) -> None:
        """Refuse widths from a value or of more than two digits; each field then prints at most all values."""
        if re.search(r"\*|[:.%][^}]*\d{3}|\{[^}]*\{", layout):
            raise BudgetExceededError("a format with a variable or very large width")
        fields = layout.count("{") + layout.count("%")
        self.budget.reserve(len(layout) + fields * (self.budget.weigh(values) + _MAX_WIDTH))

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        if len(numbers) > self.budget.limits.max_range:
            raise BudgetExceededError(f"a range of more than {self.budget.limits.max_range} items")
        return numbers
