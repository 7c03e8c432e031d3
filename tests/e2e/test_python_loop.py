"""The loop of docs/python.md, run as it stands there, with fewer rounds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]


def test_the_documented_loop_runs(
    tmp_path: Path, one_level_model_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against documentation that no longer runs; the model is a tiny one, two rounds are enough."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    for name in ("demo.toml", "prompts"):
        assert (ROOT / "configs" / name).exists()
    changes = {
        'Path("configs/demo.toml"), changes)': f'Path("{ROOT}/configs/demo.toml"), [*changes, '
        f'"model.path={one_level_model_path}", "train.seeds_per_prompt=3", "surrogate.tie_margin=0", '
        '"train.batch_size=2", "train.two_step_every=1"])',
        "range(40)": "range(3)",
        "round >= 10": "round >= 1",
    }
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/python.md", "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]
    adapter = load_file(tmp_path / "adapter" / "pytorch_lora_weights.safetensors")
    assert any("lora_B" in name and abs(tensor).max() > 0 for name, tensor in adapter.items())
