"""Attention and the Transformer, exported from the chapters of The Executable Transformer."""

__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING, Any

from .attention import attend, attend_with_weights, causal_mask, padding_mask, tiled_attend
from .cost import Cost, cost, decoder_only_cost
from .layers import (
    DecoderLayer,
    Dropout,
    EncoderLayer,
    FeedForward,
    LayerCache,
    PostNorm,
    PreNorm,
    RMSNorm,
)
from .models import DecoderOnly, Transformer, TransformerConfig
from .multihead import KVCache, MultiHeadAttention, PositionScheme, recording
from .positions import (
    AlibiBias,
    LearnedPositions,
    LinearScaling,
    NTKScaling,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
    YarnScaling,
    sinusoidal_positions,
)
from .scores import AdditiveScore, BilinearScore, dot_score, scaled_dot_score
from .softmax import masked_softmax, online_softmax, softmax
from .testing import (
    Report,
    Result,
    call_torch_module,
    call_with_mask,
    check_attention,
    check_model,
    influence,
)

if TYPE_CHECKING:
    from .datasets import multi30k, number_names, stdlib_source, tiny_shakespeare
    from .beam_search import Hypothesis, beam_search
    from .generation import greedy, stream
    from .losses import (
        SCHEDULES,
        MovingAverage,
        constant,
        cosine,
        inverse_sqrt,
        language_loss,
        linear,
        paper_rate,
        token_loss,
        translation_loss,
    )
    from .cpu import by_onednn, packed
    from .sampling import (
        Sampler,
        keep_min_p,
        keep_top_k,
        keep_top_p,
        penalise_repetition,
        sample,
        speculative,
    )
    from .tokenizer import (
        BEGIN,
        END,
        PAD,
        SPECIALS,
        UNKNOWN,
        Batch,
        BlockBatches,
        Blocks,
        PairBatches,
        ResumableBatches,
        Tokenizer,
    )
    from .trainer import (
        LOG,
        Batches,
        Loss,
        NonFiniteLoss,
        Trainer,
        TrainingBatch,
        TrainingConfig,
        make_optimizer,
        tensorboard_log,
    )
    from .recipes import RECIPES, Recipe, check_export_folder, export_model, load_export
    from .translation import PROTOCOLS, Score, Translator, record_scores, score

# What needs more than torch, or is only for training, is loaded when it is first asked for.
_LATER = {
    "tokenizer": (
        "BEGIN END PAD SPECIALS UNKNOWN "
        "Batch BlockBatches Blocks PairBatches ResumableBatches Tokenizer"
    ),
    "datasets": "multi30k number_names stdlib_source tiny_shakespeare",
    "losses": (
        "SCHEDULES MovingAverage constant cosine inverse_sqrt "
        "language_loss linear paper_rate token_loss translation_loss"
    ),
    "shapes": "",
    "plots": "",
    "checkpoints": "",  # many names that only a trainer needs: import the module
    "devices": "",
    "trainer": (
        "LOG Batches Loss NonFiniteLoss Trainer "
        "TrainingBatch TrainingConfig make_optimizer tensorboard_log"
    ),
    "recipes": "RECIPES Recipe check_export_folder export_model load_export",
    "generation": "greedy stream",
    "sampling": "Sampler keep_min_p keep_top_k keep_top_p penalise_repetition sample speculative",
    "beam_search": "Hypothesis beam_search",
    "cpu": "by_onednn packed",
    "translation": "PROTOCOLS Score Translator record_scores score",
}
_HOME = {name: module for module, names in _LATER.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'transformer_lib' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


__all__ = [
    "attend",
    "attend_with_weights",
    "causal_mask",
    "padding_mask",
    "tiled_attend",
    "DecoderLayer",
    "Dropout",
    "EncoderLayer",
    "FeedForward",
    "LayerCache",
    "PostNorm",
    "PreNorm",
    "RMSNorm",
    "Cost",
    "cost",
    "decoder_only_cost",
    "DecoderOnly",
    "Transformer",
    "TransformerConfig",
    "KVCache",
    "MultiHeadAttention",
    "PositionScheme",
    "recording",
    "AlibiBias",
    "LearnedPositions",
    "LinearScaling",
    "NTKScaling",
    "RelativeBias",
    "RotaryPositions",
    "SinusoidalPositions",
    "YarnScaling",
    "sinusoidal_positions",
    "AdditiveScore",
    "BilinearScore",
    "dot_score",
    "scaled_dot_score",
    "masked_softmax",
    "online_softmax",
    "softmax",
    "Report",
    "Result",
    "call_torch_module",
    "call_with_mask",
    "check_attention",
    "check_model",
    "influence",
    "BEGIN",
    "END",
    "PAD",
    "SPECIALS",
    "UNKNOWN",
    "Batch",
    "BlockBatches",
    "Blocks",
    "PairBatches",
    "ResumableBatches",
    "Tokenizer",
    "multi30k",
    "number_names",
    "stdlib_source",
    "tiny_shakespeare",
    "SCHEDULES",
    "MovingAverage",
    "constant",
    "cosine",
    "inverse_sqrt",
    "language_loss",
    "linear",
    "paper_rate",
    "token_loss",
    "translation_loss",
    "LOG",
    "Batches",
    "Loss",
    "NonFiniteLoss",
    "Trainer",
    "TrainingBatch",
    "TrainingConfig",
    "make_optimizer",
    "tensorboard_log",
    "RECIPES",
    "Recipe",
    "check_export_folder",
    "export_model",
    "load_export",
    "greedy",
    "stream",
    "Sampler",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "penalise_repetition",
    "sample",
    "speculative",
    "Hypothesis",
    "beam_search",
    "by_onednn",
    "packed",
    "PROTOCOLS",
    "Score",
    "Translator",
    "record_scores",
    "score",
]
