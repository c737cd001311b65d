"""`--kv-layer-groups`: how many layers of KV go into one offer, as a number, all of them, or chosen from what `triptych bench-overlap` measured.

Both ends of a transfer must cut alike, and neither may compile anything once it is ready. So the choice is made before anything is compiled and by
each worker alone, from the same file: it is a pure function of it. Workers that were given different ones are refused when they register.
"""

from __future__ import annotations

import json
from pathlib import Path

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.transfer.layer_groups import KvTimes, smallest_hidden_group
from triptych.tools.config import ServeConfig


def layers_per_offer(config: ServeConfig) -> int | None:
    """Layers an offer; None for all. Raises ConfigError if `--kv-times` is needed and cannot be read."""
    if config.kv_layer_groups == "all":
        return None
    if config.kv_layer_groups != "auto":
        return int(config.kv_layer_groups)
    assert config.kv_times is not None, "ServeConfig refuses auto without it"
    times, layers = load_kv_times(Path(config.kv_times))
    chosen = smallest_hidden_group(times, layers)
    return None if chosen == layers else chosen


def load_kv_times(path: Path) -> tuple[KvTimes, int]:
    """(times, layers of the model that was measured) of a report of `triptych bench-overlap --json`. Raises ConfigError."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        times = {name: float(value) for name, value in report["times"].items()}
        return KvTimes(**times), int(report["layers"])
    except OSError as error:
        raise ConfigError(f"--kv-times {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"--kv-times {path}: expected the JSON report of `triptych bench-overlap` ({type(error).__name__}: {error})"
        ) from error
