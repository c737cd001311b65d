"""Where a command is to write is asked before it works."""

from pathlib import Path

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.tools.cli import main
from triptych.tools.reports import check_outputs


def test_files_that_can_be_written_nothing_and_stdout_are_fine(tmp_path: Path):
    old = tmp_path / "old.json"
    old.write_text("{}")
    check_outputs(tmp_path / "new.json", old, None, Path("-"))
    assert old.read_text() == "{}" and not (tmp_path / "new.json").exists()


def test_a_missing_folder_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no folder"):
        check_outputs(None, tmp_path / "no" / "x.json")
    with pytest.raises(ConfigError, match="is a folder"):
        check_outputs(tmp_path)


@pytest.mark.parametrize(
    "command", ["fuzz", "soak", "chaos", "bench", "floor", "fidelity", "faults", "bench-scheduler"]
)
def test_commands_ask_before_they_work(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([command, "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "no folder" in capsys.readouterr().err
