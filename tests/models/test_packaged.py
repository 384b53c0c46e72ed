"""The packaged model becomes a folder once: bf16 weights, no quantisation left in its configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raycl.models.load import base_place
from raycl.models.packaged import converted
from raycl.sections import ModelSpec


class Loaded:
    """A model of one weight, stored as a transpose."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(quantization_config="Q4_1", hidden_size=2)
        self.weights = {"w": torch.arange(6.0).view(2, 3).T}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.weights

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        assert all(value.is_contiguous() for value in state.values())
        self.weights = state

    def save_pretrained(self, folder: Path) -> None:
        assert self.weights["w"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
        (folder / "config.json").write_text(" ".join(vars(self.config)))


def test_a_file_is_dequantised_once_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and built in bf16; a second call finds the folder; another file gets another folder, and nothing else is left."""
    calls: list[dict[str, Any]] = []
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: (folder / "tokenizer.json").write_text("{}"))
    loader = SimpleNamespace(
        from_pretrained=lambda **how: calls.append(how) or Loaded(),
        from_config=lambda config, **how: calls.append({"config": config} | how) or Loaded(),
    )
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM", loader)
    monkeypatch.setattr("transformers.AutoTokenizer", SimpleNamespace(from_pretrained=lambda **how: tokenizer))
    monkeypatch.setattr("transformers.GgufConfig", lambda **how: how)
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"weights")
    folder = converted(gguf)
    assert converted(gguf) == folder and len(calls) == 2
    read, built = calls
    assert read == {
        "pretrained_model_name_or_path": str(tmp_path),
        "gguf_file": "tiny.gguf",
        "dtype": torch.bfloat16,
        "quantization_config": {"gguf_file": "tiny.gguf", "dequantize": True},
    }
    assert built["dtype"] == torch.bfloat16 and vars(built["config"]) == {"hidden_size": 2}
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json"}
    gguf.write_bytes(b"others")
    assert converted(gguf) != folder and len(calls) == 4
    assert not [path for path in folder.parent.iterdir() if path.is_dir() and not path.name.startswith("tiny-")]


def test_other_programs_find_a_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged one by its copy, a folder by its whole path, a hub model by its id: nothing is fetched for it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raycl.models.load.locate", lambda spec: places[spec.name])
    monkeypatch.setattr("raycl.models.shapes.converted", lambda path: tmp_path / "copy")
    (tmp_path / "file.gguf").write_text("")
    places = {"packaged": tmp_path / "file.gguf", "folder": tmp_path / "model", "owner/name": None}
    wanted = {"packaged": str(tmp_path / "copy"), "folder": str(tmp_path / "model"), "owner/name": "owner/name"}
    assert {name: base_place(ModelSpec(name=name)) for name in places} == wanted
