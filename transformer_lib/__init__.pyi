"""The public names, each written once; a module is loaded when one is first used."""

from . import (
    attention as attention,
)
from . import (
    batches as batches,
)
from . import (
    beam_search as beam_search,
)
from . import (
    bert as bert,
)
from . import (
    bleu as bleu,
)
from . import (
    cache as cache,
)
from . import (
    checkpoint_files as checkpoint_files,
)
from . import (
    checkpoints as checkpoints,
)
from . import (
    corruption as corruption,
)
from . import (
    cost as cost,
)
from . import (
    cpu as cpu,
)
from . import (
    datasets as datasets,
)
from . import (
    devices as devices,
)
from . import (
    distributed as distributed,
)
from . import (
    generation as generation,
)
from . import (
    gpt as gpt,
)
from . import (
    hub as hub,
)
from . import (
    interop as interop,
)
from . import (
    layers as layers,
)
from . import (
    losses as losses,
)
from . import (
    models as models,
)
from . import (
    multihead as multihead,
)
from . import (
    optimization as optimization,
)
from . import (
    plots as plots,
)
from . import (
    positions as positions,
)
from . import (
    properties as properties,
)
from . import (
    recipes as recipes,
)
from . import (
    runs as runs,
)
from . import (
    sampling as sampling,
)
from . import (
    scores as scores,
)
from . import (
    settings as settings,
)
from . import (
    shapes as shapes,
)
from . import (
    softmax as softmax,
)
from . import (
    speculative as speculative,
)
from . import (
    t5 as t5,
)
from . import (
    testing as testing,
)
from . import (
    tiled as tiled,
)
from . import (
    tokenizer as tokenizer,
)
from . import (
    trainer as trainer,
)
from . import (
    translation as translation,
)
from . import (
    vit as vit,
)
from .attention import (
    attend as attend,
)
from .attention import (
    attend_with_weights as attend_with_weights,
)
from .attention import (
    causal_mask as causal_mask,
)
from .attention import (
    padding_mask as padding_mask,
)
from .batches import (
    BlockBatches as BlockBatches,
)
from .batches import (
    PairBatches as PairBatches,
)
from .bert import Bert as Bert
from .cache import KVCache as KVCache
from .cpu import pack_for_decoding as pack_for_decoding
from .cpu import use_onednn as use_onednn
from .datasets import multi30k as multi30k
from .datasets import number_names as number_names
from .generation import greedy as greedy
from .generation import stream as stream
from .gpt import GPT as GPT
from .hub import from_pretrained as from_pretrained
from .layers import (
    DecoderLayer as DecoderLayer,
)
from .layers import (
    EncoderLayer as EncoderLayer,
)
from .layers import (
    FeedForward as FeedForward,
)
from .layers import (
    RMSNorm as RMSNorm,
)
from .losses import token_loss as token_loss
from .models import (
    DecoderOnly as DecoderOnly,
)
from .models import (
    Transformer as Transformer,
)
from .models import (
    TransformerConfig as TransformerConfig,
)
from .multihead import (
    MultiHeadAttention as MultiHeadAttention,
)
from .multihead import (
    recording as recording,
)
from .positions import (
    AlibiBias as AlibiBias,
)
from .positions import (
    LearnedPositions as LearnedPositions,
)
from .positions import (
    RelativeBias as RelativeBias,
)
from .positions import (
    RotaryPositions as RotaryPositions,
)
from .positions import (
    SinusoidalPositions as SinusoidalPositions,
)
from .sampling import Sampler as Sampler
from .sampling import sample as sample
from .scores import (
    AdditiveScore as AdditiveScore,
)
from .scores import (
    BilinearScore as BilinearScore,
)
from .scores import (
    dot_score as dot_score,
)
from .scores import (
    scaled_dot_score as scaled_dot_score,
)
from .softmax import masked_softmax as masked_softmax
from .softmax import online_softmax as online_softmax
from .speculative import speculative_sample as speculative_sample
from .t5 import T5 as T5
from .testing import check_attention as check_attention
from .testing import check_model as check_model
from .tiled import tiled_attend as tiled_attend
from .tokenizer import (
    Tokenizer as Tokenizer,
)
from .trainer import Trainer as Trainer
from .trainer import TrainingConfig as TrainingConfig
from .translation import Translator as Translator
from .vit import ViT as ViT

__version__: str
