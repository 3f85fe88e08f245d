"""Attention functions, modules and models with one fault each, beside the property it breaks.

`WRONG_FUNCTIONS`, `WRONG_MODULES` and `WRONG_MODELS` map a phrase to (candidate, property); the
candidates satisfy every other property as far as the fault allows. None is copied from a library.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

D, H, V = 24, 3, 23


def visible(mask, causal, n_queries, n_keys, diagonal=None):
    """Combine both masks; None means everywhere."""
    if causal:
        late = n_keys - n_queries if diagonal is None else diagonal
        earlier = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(late)
        mask = earlier if mask is None else mask & earlier
    return torch.tensor(True) if mask is None else mask


def parts(query, key, mask, causal, diagonal=None):
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return scores, visible(mask, causal, query.shape[-2], key.shape[-2], diagonal)


def weights_of(scores, seen):
    """A correct masked softmax: empty rows are zeros, with finite gradients."""
    low = torch.finfo(scores.dtype).min
    return scores.masked_fill(~seen, low).softmax(-1).masked_fill(~seen, 0.0)


def explicit(query, key, value, mask=None, *, causal=False):
    """Correct."""
    return weights_of(*parts(query, key, mask, causal)) @ value


def looped(query, key, value, mask=None, *, causal=False):
    """Correct, one query and one key at a time: the reference."""
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    seen = visible(mask, causal, n_queries, n_keys).expand(*query.shape[:-1], n_keys)
    rows = []
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for t in range(n_queries):
                places = [s for s in range(n_keys) if seen[b, h, t, s]]
                row = value[b, h, 0] * 0
                if places:
                    q = query[b, h, t] / math.sqrt(query.shape[-1])
                    scores = torch.stack([(q * key[b, h, s]).sum() for s in places])
                    match = (scores - scores.max().detach()).exp()
                    for m, s in zip(match, places, strict=True):
                        row = row + m / match.sum() * value[b, h, s]
                rows.append(row)
    return torch.stack(rows).reshape(*query.shape[:-1], value.shape[-1])


# functions on heads


def no_scale(query, key, value, mask=None, *, causal=False):
    return explicit(query * math.sqrt(query.shape[-1]), key, value, mask, causal=causal)


def softmax_over_queries(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    low = torch.finfo(scores.dtype).min
    return scores.masked_fill(~seen, low).softmax(-2).masked_fill(~seen, 0.0) @ value


def inverted_mask(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, None if mask is None else ~mask, causal)
    return weights_of(scores, seen) @ value


def inverted_causal_mask(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, False)
    late = ~visible(None, True, *scores.shape[-2:])
    return weights_of(scores, seen & late if causal else seen) @ value


def mask_ignored(query, key, value, mask=None, *, causal=False):
    return explicit(query, key, value, None, causal=causal)


def mask_after_softmax(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    return scores.softmax(-1).masked_fill(~seen, 0.0) @ value


def mask_after_softmax_renormalised(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    weights = scores.softmax(-1).masked_fill(~seen, 0.0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12) @ value


def mask_on_the_query(query, key, value, mask=None, *, causal=False):
    hidden = torch.tensor(False) if mask is None else ~mask.any(-1, keepdim=True)
    return explicit(query, key, value, causal=causal).masked_fill(hidden, 0.0)


def causal_one_late(query, key, value, mask=None, *, causal=False):
    late = key.shape[-2] - query.shape[-2] + 1
    return weights_of(*parts(query, key, mask, causal, late)) @ value


def causal_one_early(query, key, value, mask=None, *, causal=False):
    late = key.shape[-2] - query.shape[-2] - 1
    return weights_of(*parts(query, key, mask, causal, late)) @ value


def aligned_top_left(query, key, value, mask=None, *, causal=False):
    return weights_of(*parts(query, key, mask, causal, 0)) @ value


def only_itself(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    return weights_of(scores, seen & ~seen.tril(-1) if causal else seen) @ value


def scales_in_place(query, key, value, mask=None, *, causal=False):
    with torch.no_grad():
        query.mul_(1 / math.sqrt(query.shape[-1]))
    return weights_of(query @ key.mT, parts(query, key, mask, causal)[1]) @ value


def writes_into_mask(query, key, value, mask=None, *, causal=False):
    if mask is not None and causal and mask.shape[-2:] == (query.shape[-2], key.shape[-2]):
        mask &= visible(None, True, query.shape[-2], key.shape[-2])
    return explicit(query, key, value, mask, causal=causal)


def minus_a_billion(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    return scores.masked_fill(~seen, -1e9).softmax(-1).masked_fill(~seen, 0.0) @ value


def uniform_on_empty_rows(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) @ value


def nan_on_empty_rows(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ value


def nan_on_the_way_back(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    hide = torch.zeros_like(scores).masked_fill(~seen, -math.inf)
    return (scores + hide).softmax(-1).nan_to_num(0.0) @ value


def batch_leak(query, key, value, mask=None, *, causal=False):
    return explicit(query - query.mean(0, keepdim=True), key, value, mask, causal=causal)


def squeezed(query, key, value, mask=None, *, causal=False):
    return explicit(query, key, value, mask, causal=causal).squeeze(0)


def head_leak(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    return weights_of(scores - scores.mean(1, keepdim=True), seen) @ value


def detached_weights(query, key, value, mask=None, *, causal=False):
    scores, seen = parts(query, key, mask, causal)
    return weights_of(scores.detach(), seen) @ value + (scores * 0) @ value


def in_float32_throughout(query, key, value, mask=None, *, causal=False):
    return explicit(query.float(), key.float(), value.float(), mask, causal=causal)


def sign_blind(x, width):
    """Mark the feature that is farthest from the mean: no sign, size or shift of x changes it."""
    return F.one_hot(F.layer_norm(x, x.shape[-1:]).abs().argmax(-1), width).to(x)


def sign_blind_future(query, key, value, mask=None, *, causal=False):
    out = explicit(query, key, value, mask, causal=causal)
    later = key.roll(-1, -2)[..., -query.shape[-2] :, :]
    return out + sign_blind(later, value.shape[-1]) * causal


def values_in_reverse(query, key, value, mask=None, *, causal=False):
    return explicit(query, key, value.flip(-2), mask, causal=causal)


def weights_above_one(query, key, value, mask=None, *, causal=False):
    return 1.02 * explicit(query, key, value, mask, causal=causal)


WRONG_FUNCTIONS = {
    "no scale": (no_scale, "agrees with torch"),
    "softmax over the queries": (softmax_over_queries, "weights sum to one"),
    "inverted mask": (inverted_mask, "True means may attend"),
    "inverted causal mask": (inverted_causal_mask, "causality by perturbation"),
    "mask ignored": (mask_ignored, "padding does not matter"),
    "mask after the softmax": (mask_after_softmax, "causality by gradient"),
    "mask after the softmax, renormalised": (
        mask_after_softmax_renormalised, "causality by perturbation",
    ),
    "mask on the query": (mask_on_the_query, "True means may attend"),
    "causal mask one late": (causal_one_late, "causality by perturbation"),
    "later key seen without sign or size": (sign_blind_future, "causality by perturbation"),
    "causal mask one early": (causal_one_early, "last query sees last key"),
    "causal mask aligned top-left": (aligned_top_left, "last query sees last key"),
    "sees only itself": (only_itself, "the past matters"),
    "scales its input in place": (scales_in_place, "inputs stay unchanged"),
    "writes into the mask": (writes_into_mask, "inputs stay unchanged"),
    "-1e9 in half precision": (minus_a_billion, "works in float16"),
    "uniform on empty rows": (uniform_on_empty_rows, "empty rows are silent"),
    "nan on empty rows": (nan_on_empty_rows, "empty rows are silent"),
    "nan on the way back": (nan_on_the_way_back, "empty rows have finite gradients"),
    "batch leak": (batch_leak, "batch independence"),
    "squeezed when the batch is one": (squeezed, "batch independence"),
    "head leak": (head_leak, "head independence"),
    "weights without gradient": (detached_weights, "gradients by finite differences"),
    "float32 whatever comes in": (in_float32_throughout, "works in bfloat16"),
    "values in another order than keys": (values_in_reverse, "order of keys"),
    "weights sum to more than one": (weights_above_one, "weights sum to one"),
}  # fmt: skip


# modules on (B, T, D)


class Cache:
    def __init__(self):
        self.key = self.value = None

    def append(self, key, value):
        if self.key is not None:
            key, value = torch.cat([self.key, key], -2), torch.cat([self.value, value], -2)
        self.key, self.value = key, value
        return key, value


class Heads(nn.Module):
    """Correct multi-head attention, whose steps the wrong ones override."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(D, D) for _ in range(4))
        self.dropout = dropout

    def split(self, x):
        return x.unflatten(-1, (H, D // H)).transpose(1, 2)

    def merge(self, x):
        return x.transpose(1, 2).flatten(2)

    def mix(self, query, key, value, mask, causal):
        weights = weights_of(*parts(query, key, mask, causal))
        return F.dropout(weights, self.dropout, self.training) @ value

    def forward(self, query, key=None, value=None, mask=None, *, causal=False, cache=None):
        key = query if key is None else key
        value = key if value is None else value
        inputs = zip(self.project, (query, key, value), strict=False)
        q, k, v = (self.split(linear(x)) for linear, x in inputs)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.project[3](self.merge(self.mix(q, k, v, mask, causal)))


class SplitByView(Heads):
    def split(self, x):
        return x.reshape(len(x), H, -1, D // H)


class MergeWithoutTranspose(Heads):
    def merge(self, x):
        return x.reshape(len(x), -1, D)


class MaskDroppedInEval(Heads):
    def mix(self, query, key, value, mask, causal):
        mask, causal = (mask, causal) if self.training else (None, False)
        return super().mix(query, key, value, mask, causal)


class MaskDroppedInTraining(Heads):
    def mix(self, query, key, value, mask, causal):
        mask = None if self.training else mask
        return super().mix(query, key, value, mask, causal)


class DropsInEval(Heads):
    def mix(self, query, key, value, mask, causal):
        return F.dropout(super().mix(query, key, value, mask, causal), 0.1)


class KeysForValues(Heads):
    def mix(self, query, key, value, mask, causal):
        return super().mix(query, key, key, mask, causal)


class Positioned(Heads):
    """Correct: adds positions to queries and keys, counted on from the cache."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, D // H))

    def mix(self, query, key, value, mask, causal):
        last = key.shape[-2]
        query = query + self.table[last - query.shape[-2] : last]
        return super().mix(query, key + self.table[:last], value, mask, causal)


class CachePositionZero(Positioned):
    def mix(self, query, key, value, mask, causal):
        query = query + self.table[: query.shape[-2]]
        return Heads.mix(self, query, key + self.table[: key.shape[-2]], value, mask, causal)


class CacheMaskTopLeft(Heads):
    def mix(self, query, key, value, mask, causal):
        return weights_of(*parts(query, key, mask, causal, 0)) @ value


class StaleCache(Heads):
    """Forgets the second-last piece when a new one arrives."""

    def forward(self, *inputs, cache=None, **options):
        if cache is not None and cache.key is not None:
            cache.key, cache.value = cache.key[..., -1:, :], cache.value[..., -1:, :]
        return super().forward(*inputs, cache=cache, **options)


WRONG_MODULES = {
    "heads split by view": (SplitByView, "causality by perturbation"),
    "heads split by view, seen by order": (SplitByView, "order of queries"),
    "heads merged without transpose": (MergeWithoutTranspose, "causality by gradient"),
    "mask dropped in eval": (MaskDroppedInEval, "True means may attend"),
    "mask dropped in training": (MaskDroppedInTraining, "same in training and evaluation"),
    "dropout in eval": (DropsInEval, "same in training and evaluation"),
    "keys used for values": (KeysForValues, "weights sum to one"),
    "cache counts positions from 0": (CachePositionZero, "cache equals no cache"),
    "cache with a top-left mask": (CacheMaskTopLeft, "cache equals no cache"),
    "cache that forgets": (StaleCache, "cache equals no cache"),
}


# models


class Translator(nn.Module):
    """A tiny encoder-decoder of torch's layers; `fault` names what is left out or done wrong."""

    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault
        options = {"batch_first": True, "dropout": 0.1}
        self.embedding, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        nn.init.normal_(self.head.weight, std=4.0 if fault == "output weights too large" else 0.2)
        self.register_buffer("positions", torch.randn(16, D))
        self.encoder = nn.TransformerEncoderLayer(D, H, 2 * D, **options)
        layers = [nn.TransformerDecoderLayer(D, H, 2 * D, **options) for _ in range(2)]
        self.decoder = layers if fault == "layers in a plain list" else nn.ModuleList(layers)
        if fault == "an unused parameter":
            self.spare = nn.Parameter(torch.ones(2))

    def embed(self, tokens, first=0):
        x = self.embedding(tokens)
        if self.fault == "no positions":
            return x
        return x + self.positions[first : first + tokens.shape[1]]

    def decode(self, x, memory, hidden):
        n = x.shape[1]
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        if self.fault == "no causal mask":
            future = None
        if self.fault == "decoder reads no prefix":
            future = ~torch.eye(n, dtype=torch.bool)
        if self.fault == "cross-attention dropped":
            memory = memory * 0
        if self.fault == "cross-attention sees padding":
            hidden = None
        for layer in self.decoder:
            x = layer(x, memory, tgt_mask=future, memory_key_padding_mask=hidden)
        if self.fault == "dropout in eval":
            x = F.dropout(x, 0.1)
        if self.fault == "nothing learns":
            x = x.detach()
        return self.head(x)

    def forward(self, source, target, *, source_mask=None):
        if self.fault == "target not shifted":
            target = target.roll(-1, 1)
        hidden = None if source_mask is None else ~source_mask[:, 0, 0]
        memory = self.encoder(self.embed(source), src_key_padding_mask=hidden)
        if self.fault == "rows of the batch mixed":
            memory = memory - memory.mean(0, keepdim=True)
        if self.fault == "writes into the source":
            source.zero_()
        logits = self.decode(self.embed(target), memory, hidden)
        if self.fault == "knows the answer":
            logits = logits + 3.0 * F.one_hot(target.roll(-1, 1), V)
        return logits


def decode_in_pieces(model, source, source_mask, pieces):
    """Decode with all embedded tokens so far as the cache, each in its place."""
    memory, seen, logits = model.encoder(model.embed(source)), torch.empty(len(source), 0, D), []
    for piece in pieces:
        first = 0 if model.fault == "cache counts positions from 0" else seen.shape[1]
        seen = torch.cat([seen, model.embed(piece, first)], dim=1)
        logits.append(model.decode(seen, memory, None)[:, -piece.shape[1] :])
    return logits


class Continuer(Translator):
    """A decoder-only model of the same parts."""

    def __init__(self, fault=""):
        super().__init__(fault)
        del self.decoder

    def forward(self, tokens):
        hide = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hide = None if self.fault == "no causal mask" else hide.to(self.positions)
        return self.head(self.encoder(self.embed(tokens), src_mask=hide))


WRONG_MODELS = {
    "no causal mask": "causality by perturbation",
    "decoder reads no prefix": "the past matters",
    "no positions": "order matters",
    "cross-attention dropped": "every source token matters",
    "cross-attention sees padding": "padding does not matter",
    "target not shifted": "causality by perturbation",
    "rows of the batch mixed": "batch independence",
    "knows the answer": "initial loss not below ln V",
    "output weights too large": "initial loss near ln V",
    "an unused parameter": "every parameter learns",
    "nothing learns": "every parameter learns",
    "layers in a plain list": "state dict holds everything",
    "dropout in eval": "same in training and evaluation",
    "writes into the source": "inputs stay unchanged",
    "cache counts positions from 0": "cache equals no cache",
}
