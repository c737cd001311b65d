"""Files that share something of the whole session run in one process of pytest-xdist, one after another, so that it is made once.

With `--dist loadfile` any process may get any file; here some files count as one.
"""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = {
    "tests/system/test_recovery.py": "a deployment",
    "tests/system/test_scheduler_restart.py": "a deployment",
    "tests/system/test_storm.py": "a deployment",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Loadfile, by the table above; any other way of distributing stays as it is."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return Together(config, log)
