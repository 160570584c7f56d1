"""Audio embeddings from pretrained audio transformers and CNNs.

`list_models`, `load_model`, `embed` and `embed_timestamps` know every model by its name. Each family of `FAMILIES` is
also a module that follows the HEAR API, such as ``hear_transformers.passt``. docs/api.md lists what users may rely on.

Nothing heavy is imported here, so that command lines can answer ``--help`` at once: functions and classes are imported
when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import embed, embed_timestamps, list_models, load_model
    from .embedding.embedder import Embedder
    from .embedding.encode import Timestamps

__all__ = [
    "FAMILIES", "OPEN_FAMILIES", "Embedder", "Timestamps", "__version__", "embed", "embed_timestamps", "list_models",
    "load_model",
]  # fmt: skip

__version__ = "0.1.0"

FAMILIES = {
    "tiny": "compact transformer embedded in this package, trained on synthesised audio (the default, works offline)",
    "passt": "Patchout faSt Spectrogram Transformer, Koutini et al., Interspeech 2022",
    "ast": "Audio Spectrogram Transformer, Gong et al., Interspeech 2021",
    "panns": "PANNs: CNNs over log-mel spectrograms, waveforms or both, Kong et al., TASLP 2020",
    "mast": "Multiscale Audio Spectrogram Transformer, after Zhu & Omar, ICASSP 2023; a small one is embedded",
    "atgnn": "Audio Tagging Graph Neural Network, Singh et al., SPL 2024; a small one is embedded",
    "efficientat": "EfficientAT MobileNets and dynamic MobileNets, Schmid et al., ICASSP 2023 and TASLP 2024",
    "dasheng": "Dasheng: masked autoencoders for audio of any kind, 40 ms a frame, Dinkel et al., Interspeech 2024",
    "ced": "CED: small transformers that learnt AudioSet from an ensemble, Dinkel et al., ICASSP 2024",
    "eat": "Efficient Audio Transformer, Chen et al., IJCAI 2024, and SSLAM, Alex et al., ICLR 2025",
    "atst": "ATST-Frame: audio teacher-student transformer, 40 ms a frame, Li et al., TASLP 2024",
    "clap": "CLAP: HTS-AT, whose projection lies in one space with texts, Wu et al., ICASSP 2023",
    "beats": "BEATs, Chen et al., ICML 2023; OpenBEATs, NatureBEATs, and PretrainedSED's with strong labels",
}
"""Every family of networks: module name -> one line for people. The first one is the command line's default."""

OPEN_FAMILIES = {
    "hf": "any audio encoder of Hugging Face; its variant is a folder, or a name such as facebook/wav2vec2-base"
}
"""Families without a table of variants: module name -> one line for people."""

HANDED_ON = {
    **dict.fromkeys(("embed", "embed_timestamps", "list_models", "load_model"), "api"),
    "Embedder": "embedding.embedder",
    "Timestamps": "embedding.encode",
}
"""Name -> the module that it is imported from when it is asked for."""


if not TYPE_CHECKING:  # for which every name would be there

    def __getattr__(name: str) -> Any:
        """Import what is handed on."""
        if name in HANDED_ON:
            return getattr(import_module(f"{__name__}.{HANDED_ON[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is handed on, too."""
    return sorted({*globals(), *__all__})
