"""Imports run one way, files stay small, and the pure parts stay pure (docs/design.md, Layout)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("models", "proto", "runtime", "sharding", "tools")
MAX_LINES = 400

# Who may import whom, beside itself; a package inside runtime is named by its two parts.
ALLOWED = {
    "proto": set[str](),
    "sharding": {"models"},
    "models": {"sharding"},
    "runtime/core": set[str](),
    "runtime/scheduler": {"runtime/core", "runtime/wire", "proto"},
    "runtime/instance": {"runtime/core"},
    "runtime/media": {"runtime/core"},
    "runtime/wire": {"runtime/core", "proto"},
    "runtime/gateway": {
        "runtime/core",
        "runtime/wire",
        "runtime/client",
        "runtime/media",
        "runtime/metrics",
        "models",
        "proto",
    },
    "runtime/metrics": {"runtime/core", "runtime/wire", "proto"},
    "runtime/client": {"runtime/core", "runtime/media", "runtime/wire", "proto"},
    "runtime/simulation": {"runtime/core", "runtime/scheduler", "runtime/instance"},
    "runtime/engine": {"runtime/core", "runtime/instance", "runtime/transfer", "models", "sharding"},
}
PURE = ("runtime/core", "runtime/instance", "runtime/scheduler", "runtime/simulation", "runtime/media")
SHELL = {f"runtime/scheduler/{name}.py" for name in ("service", "server", "control_loop")}  # the scheduler's gRPC shell


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name:
                yield path.relative_to(ROOT)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def package(module: str) -> str | None:
    """runtime/core for triptych.runtime.core.x, models for triptych.models.y; None for other people's modules."""
    parts = module.split(".")
    if parts[0] != "triptych" or len(parts) < 2:
        return None
    return "/".join(parts[1:3]) if parts[1] == "runtime" else parts[1]


def test_imports_run_one_way():
    wrong = []
    for path in sources():
        own = package("triptych." + ".".join(path.with_suffix("").parts)) or ""
        for module in imports(path):
            target = package(module)
            if target is None or target == own:
                continue
            if own in ALLOWED and target not in ALLOWED[own]:
                wrong.append(f"{path} imports {module}")
            if own != "tools" and target == "tools":
                wrong.append(f"{path} imports {module}: only tools may")
    assert not wrong, "\n".join(wrong)


def test_the_pure_parts_import_neither_jax_nor_grpc():
    wrong = [
        f"{path} imports {module}"
        for path in sources()
        if str(path).startswith(PURE) and str(path) not in SHELL
        for module in imports(path)
        if module.split(".")[0] in {"jax", "jaxlib", "flax", "grpc", "grpc_health"}
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_folders_by_their_bare_names():
    wrong = [f"{path} imports {m}" for path in sources() for m in imports(path) if m.split(".")[0] in FOLDERS]
    assert not wrong, "\n".join(wrong)


def test_only_the_settings_read_the_environment():
    """`os.environ` may be handed on (to a child, to `resolve`) by tools; nobody else touches it."""
    wrong = []
    for path in sources():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else ""
            if name in {"environ", "getenv"} and path.parts[0] != "tools":
                wrong.append(f"{path}:{getattr(node, 'lineno', 0)} reads the environment")
    assert not wrong, "\n".join(wrong)


def test_files_stay_small():
    long = [
        f"{path}: {n} lines" for path in sources() if (n := len((ROOT / path).read_text().splitlines())) > MAX_LINES
    ]
    assert not long, "\n".join(long)


def test_every_package_is_linked_and_importable():
    links = {p.name for p in (ROOT / "src" / "triptych").iterdir() if p.is_symlink()}
    assert links == set(FOLDERS)
    missing = {path.parent for path in sources()} - {path.parent for path in sources() if path.name == "__init__.py"}
    assert not missing, f"no __init__.py in {sorted(map(str, missing))}"


@pytest.mark.parametrize(
    "module",
    [
        "triptych.runtime.client",
        "triptych.runtime.gateway.server",
        "triptych.runtime.media.decode",
        "triptych.runtime.gateway.http.server",
        "triptych.runtime.scheduler.server",
        "triptych.runtime.instance.core",
        "triptych.models.text.chat",
        "triptych.models.hub.text",
    ],
)
def test_what_owns_no_device_does_not_load_jax(module: str):
    code = f"import sys, importlib; importlib.import_module({module!r}); sys.exit(int('jax' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_gateway_does_not_load_what_decodes_media():
    """A hostile file meets Pillow, libsndfile and FFmpeg in decoder processes only."""
    code = (
        "import sys, triptych.runtime.media.decode, triptych.runtime.media.store; "
        "sys.exit(int(bool({'PIL', 'soundfile', 'soxr', 'av'} & set(sys.modules))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
