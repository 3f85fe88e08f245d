"""Attention and the Transformer, exported from the chapters of The Executable Transformer."""

__version__ = "0.1.0"

from .attention import attend, attend_with_weights, causal_mask, padding_mask, tiled_attend
from .layers import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    LayerCache,
    PostNorm,
    PreNorm,
    RMSNorm,
)
from .models import Cost, Transformer, TransformerConfig, cost
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

__all__ = [
    "attend",
    "attend_with_weights",
    "causal_mask",
    "padding_mask",
    "tiled_attend",
    "DecoderLayer",
    "EncoderLayer",
    "FeedForward",
    "LayerCache",
    "PostNorm",
    "PreNorm",
    "RMSNorm",
    "Cost",
    "Transformer",
    "TransformerConfig",
    "cost",
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
]
