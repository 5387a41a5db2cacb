"""What the service writes is nobody else's on its machine."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from core.own_process import keep_private
data = Path(sys.argv[1])
keep_private(data)
(data / "deeper").mkdir(parents=True)
(data / "tunewright.db").write_text("x")
"""


def test_files_and_folders_are_private(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    os.chmod(data, 0o755)
    subprocess.run([sys.executable, "-c", SCRIPT, str(data)], check=True)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (data, *data.iterdir())}
    assert modes == {"data": 0o700, "deeper": 0o700, "tunewright.db": 0o600}
