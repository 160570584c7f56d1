"""Small encoders of Hugging Face with random weights, in folders as `save_pretrained` writes them."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
CONVOLUTIONS: dict[str, Any] = {"conv_dim": (32,) * 7}
POSITIONS: dict[str, Any] = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
WHISPER: dict[str, Any] = {
    "d_model": 32,
    **{f"{part}_{name}": 4 for part in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")},
    "max_source_positions": 100,
    "vocab_size": 10,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}

WAVES: dict[str, Any] = {"feature_extractor": "Wav2Vec2FeatureExtractor"}

ENCODERS: dict[str, dict[str, Any]] = {
    "wav2vec2-group": {**WAVES, "model": "Wav2Vec2", **SMALL, **CONVOLUTIONS, **POSITIONS},
    "wav2vec2-layer": {
        **WAVES,
        "model": "Wav2Vec2",
        **SMALL,
        **CONVOLUTIONS,
        **POSITIONS,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
    },
    "hubert": {**WAVES, "model": "Hubert", **SMALL, **CONVOLUTIONS, **POSITIONS},
    "wavlm": {**WAVES, "model": "WavLM", **SMALL, **CONVOLUTIONS, **POSITIONS, "extracting": {"do_normalize": False}},
    "data2vec-audio": {**WAVES, "model": "Data2VecAudio", **SMALL, **CONVOLUTIONS, "num_conv_pos_embeddings": 2},
    "sew": {**WAVES, "model": "SEW", **SMALL, **POSITIONS, "conv_dim": (16,) * 13},
    "wav2vec2-bert": {"model": "Wav2Vec2Bert", "feature_extractor": "SeamlessM4TFeatureExtractor", **SMALL},
    "whisper": {
        "model": "Whisper",
        "feature_extractor": "WhisperFeatureExtractor",
        **WHISPER,
        "extracting": {"chunk_length": 2},
    },
    "ast": {
        "model": "AST",
        "feature_extractor": "ASTFeatureExtractor",
        **SMALL,
        "max_length": 256,
        "extracting": {"max_length": 256},
    },
}
"""Architectures: arguments of the configuration, and "extracting", those of the feature extractor."""


@functools.cache
def folder() -> Path:
    """Make the folder of all encoders of this process."""
    held = tempfile.TemporaryDirectory()
    KEPT.append(held)
    return Path(held.name)


KEPT: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def encoder(name: str) -> Path:
    """Return the folder of an encoder, which is written at the first use."""
    import transformers

    arguments = dict(ENCODERS[name])
    kind, extractor = arguments.pop("model"), arguments.pop("feature_extractor")
    options = arguments.pop("extracting", {})
    config = getattr(transformers, f"{kind}Config")(**arguments)
    path = folder() / name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(path)
    getattr(transformers, extractor)(**options).save_pretrained(path)
    return path


CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own_of_test"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    _supports_sdpa = True
    all_tied_weights_keys = {}

    def __init__(self, config):
        super().__init__(config)
        self.conv = torch.nn.Conv1d(1, 8, 200, 100)

    def forward(self, wav):
        first = self.conv(wav[:, None]).transpose(1, 2)
        return {"x": first.tanh(), "hidden_states": [first, first.tanh()]}

    def _init_weights(self, module):
        pass
"""


def own_code(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write an encoder with code of its own, and without a preprocessor, as USAD has it; return its folder.

    What `transformers` copies of it goes into `place` too.
    """
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(place / "modules"))
    monkeypatch.syspath_prepend(str(place / "modules"))
    folder = place / "own"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(CODE)
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own_of_test", "auto_map": names}))
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (8, 1, 200), "conv.bias": (8,)}
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
