"""The README's twenty lines, run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_readmes_lines_embed_the_sdk(server, model_path, tmp_path):
    license_id = server.grant(limit=100)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {
        "ISSUER": "vendor.example",
        "ROOT_PUBLIC_KEY": server.root,
        "ACTIVATION_CODE": server.code(license_id),
        "SERVER": server.url,
        "MODEL_PATH": str(model_path),
    }
    given = "import numpy as np\nframe = np.ones((3, 2), np.float32)\n"
    given += "".join(f"{name} = {value!r}\n" for name, value in names.items())
    program = tmp_path / "program.py"
    program.write_text(given + block.replace('model="detector"', 'model="mul"'))
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Status(" in done.stdout
    assert server.ask("GET", f"/usage?license={license_id}")["items"][0]["units"] == 1


def test_the_block_is_about_twenty_lines():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(block.splitlines()) <= 22


def test_every_command_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
