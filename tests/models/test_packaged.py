"""The packaged model becomes a folder once: bf16 weights, no quantisation left in its configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from raycl.models.load import base_place
from raycl.models.packaged import converted, read_once
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


def test_a_file_is_read_once_and_as_before(tmp_path: Path) -> None:
    """Whoever asks for it in between gets the same reader and the same names, with the fields and numbers of gguf's own."""
    path, words = str(tmp_path / "tiny.gguf"), [f"word {number}" for number in range(9)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(words)
    writer.add_tensor("output.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    own, names = gguf.GGUFReader, gguf.get_tensor_name_map
    plain = own(path)
    with read_once():
        reader = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is reader and type(reader.data) is np.ndarray
        once = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is once
        assert once.mapping == names(gguf.MODEL_ARCH.LLAMA, 2).mapping
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == (own, names)
    assert {name: field.contents() for name, field in reader.fields.items()} == {
        name: field.contents() for name, field in plain.fields.items()
    }
    assert reader.fields["tokenizer.ggml.tokens"].contents() == words
    assert [one.data.tolist() for one in reader.tensors] == [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]


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
