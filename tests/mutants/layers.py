"""Deliberate faults in transformer_lib/layers.py; tests/test_layers.py must catch each."""

MUTANTS = [
    # dropout
    ("dropped too often", "coins >= n_dropped - 2**15", "coins > n_dropped - 2**15 + 3000"),
    ("coins counted from zero", "coins >= n_dropped - 2**15", "coins >= n_dropped"),
    ("those kept are not scaled", "x * kept.mul_(2**16 / (2**16 - n_dropped))", "x * kept"),
    ("scaled by p, not by what p is taken to", "2**16 / (2**16 - n_dropped)", "1 / (1 - self.p)"),
    (
        "everything may be dropped",
        "min(round(self.p * 2**16), 2**16 - 1)",
        "round(self.p * 2**16)",
    ),
    ("p of one is ours", "self.p < 1 and ", ""),
    (
        "drops in evaluation",
        "if not (self.training and self.p and ours):",
        "if not (self.p and ours):",
    ),
    ("positive words alone", "random_(-(2**63), None)", "random_()"),
    (
        "one coin for four",
        "words.view(torch.int16)[: x.numel()]",
        "words.view(torch.int16)[::4].repeat_interleave(4)[: x.numel()]",
    ),
    ("a word too few", "-(-x.numel() // 4)", "x.numel() // 4"),
    ("traced by a compiler", " and not torch.compiler.is_compiling()", ""),
    (
        "half precision becomes float32",
        ".to(x.dtype)\n        return x * kept",
        ".to(torch.float32)\n        return x * kept",
    ),
    # feed-forward
    (
        "the bend is gone",
        "hidden = _PLAIN[self.activation](self.inner(x))",
        "hidden = self.inner(x)",
    ),
    ("gelu computed as silu", '"gelu": F.gelu', '"gelu": F.silu'),
    (
        "the two gates exchanged",
        '"swiglu": F.silu, "geglu": F.gelu',
        '"swiglu": F.gelu, "geglu": F.silu',
    ),
    (
        "the wrong half bent",
        "bent, straight = self.inner(x).chunk(2, dim=-1)",
        "straight, bent = self.inner(x).chunk(2, dim=-1)",
    ),
    ("halves added, not multiplied", "(bent) * straight", "(bent) + straight"),
    ("hidden units never dropped", "self.outer(self.dropout(hidden))", "self.outer(hidden)"),
    (
        "hidden units dropped in evaluation too",
        "self.outer(self.dropout(hidden))",
        "self.outer(F.dropout(hidden, self.dropout.p))",
    ),
    (
        "gated matrices drawn as one",
        "(*self.inner.weight.split(self.outer.in_features), self.outer.weight)",
        "(self.inner.weight, self.outer.weight)",
    ),
    (
        "d_ff not used",
        "self.inner = nn.Linear(d_model, d_ff * (2 if activation in _GATED else 1), bias=bias)\n"
        "        self.dropout = Dropout(dropout)\n"
        "        self.outer = nn.Linear(d_ff, d_model, bias=bias)",
        "self.inner = nn.Linear(d_model, d_model * (2 if activation in _GATED else 1), bias=bias)\n"
        "        self.dropout = Dropout(dropout)\n"
        "        self.outer = nn.Linear(d_model, d_model, bias=bias)",
    ),
    (
        "the second matrix keeps its bias",
        "self.outer = nn.Linear(d_ff, d_model, bias=bias)",
        "self.outer = nn.Linear(d_ff, d_model)",
    ),
    # norms
    (
        "RMSNorm as LayerNorm",
        "F.rms_norm(x, self.weight.shape, self.weight, self.eps)",
        "F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)",
    ),
    (
        "eps added to the root",
        "F.rms_norm(x, self.weight.shape, self.weight, self.eps)",
        "self.weight * x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps)",
    ),
    (
        "squares overflow half precision",
        "F.rms_norm(x, self.weight.shape, self.weight, self.eps)",
        "self.weight * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()",
    ),
    (
        "norm over the positions too",
        "F.rms_norm(x, self.weight.shape, self.weight, self.eps)",
        "self.weight * F.rms_norm(x, x.shape[-2:], None, self.eps)",
    ),
    (
        "the learned gain not used",
        "F.rms_norm(x, self.weight.shape, self.weight, self.eps)",
        "F.rms_norm(x, self.weight.shape, None, self.eps)",
    ),
    ("RMSNorm's eps changed", "eps: float = 1e-6", "eps: float = 1e-5"),
    # residual connections
    (
        "post-norm without residual",
        "return self.norm(x + self.dropout(sublayer(x)))",
        "return self.norm(self.dropout(sublayer(x)))",
    ),
    (
        "pre-norm without residual",
        "return x + self.dropout(sublayer(self.norm(x)))",
        "return self.dropout(sublayer(self.norm(x)))",
    ),
    (
        "norm inside the post-norm branch",
        "return self.norm(x + self.dropout(sublayer(x)))",
        "return x + self.norm(self.dropout(sublayer(x)))",
    ),
    (
        "the normed copy takes the stream's place",
        "return x + self.dropout(sublayer(self.norm(x)))",
        "x = self.norm(x)\n        return x + self.dropout(sublayer(x))",
    ),
    (
        "post and pre exchanged",
        '{"post": PostNorm, "pre": PreNorm}',
        '{"post": PreNorm, "pre": PostNorm}',
    ),
    (
        "dropout on the stream",
        "return self.norm(x + self.dropout(sublayer(x)))",
        "return self.norm(self.dropout(x + sublayer(x)))",
    ),
    (
        "dropout twice",
        "return x + self.dropout(sublayer(self.norm(x)))",
        "return x + self.dropout(self.dropout(sublayer(self.norm(x))))",
    ),
    (
        "dropout forgotten",
        "return self.norm(x + self.dropout(sublayer(x)))",
        "return self.norm(x + sublayer(x))",
    ),
    (
        "dropout in evaluation too",
        "return x + self.dropout(sublayer(self.norm(x)))",
        "return x + F.dropout(sublayer(self.norm(x)), self.dropout.p)",
    ),
    ("norm_type ignored", "_NORMS[norm_type](d_model)", "nn.LayerNorm(d_model)"),
    # encoder layer
    (
        "the mask forgotten",
        'options: dict[str, Any] = {"mask": mask, ',
        'options: dict[str, Any] = {"mask": None, ',
    ),
    ("causal forgotten", '"causal": causal, "cache": cache}', '"causal": False, "cache": cache}'),
    ("the encoder's cache forgotten", '"causal": causal, "cache": cache}', '"causal": causal}'),
    (
        "no feed-forward in the encoder",
        "x = self.around_attention(x, lambda h: self.attention(h, **options))\n"
        "        return self.around_feed_forward(x, self.feed_forward)",
        "x = self.around_attention(x, lambda h: self.attention(h, **options))\n"
        "        return self.around_feed_forward(x, lambda h: h)",
    ),
    (
        "one frame for both sublayers",
        "self.around_feed_forward = _around(self, d_model, norm, norm_type, dropout)\n\n"
        '    def forward(\n        self, x: Float[Tensor, "B T D"], mask',
        "self.around_feed_forward = self.around_attention\n\n"
        '    def forward(\n        self, x: Float[Tensor, "B T D"], mask',
    ),
    (
        "encoder without positions",
        'heads |= {"bias": bias, "positions": positions}',
        'heads |= {"bias": bias}',
    ),
    # decoder layer
    (
        "the decoder sees the future",
        '"mask": mask, "causal": True',
        '"mask": mask, "causal": False',
    ),
    ("the target's mask dropped", '{"mask": mask, "causal": True', '{"mask": None, "causal": True'),
    (
        "the memory's mask dropped",
        '{"mask": memory_mask, "cache": read}',
        '{"mask": None, "cache": read}',
    ),
    (
        "causal mask on the memory",
        '{"mask": memory_mask, "cache": read}',
        '{"mask": memory_mask, "cache": read, "causal": True}',
    ),
    (
        "cross-attention attends to itself",
        "self.cross_attention(h, memory, **cross)",
        "self.cross_attention(h, h, **cross)",
    ),
    (
        "one attention for both",
        "self.cross_attention = MultiHeadAttention(d_model, n_heads, **heads)",
        "self.cross_attention = self.self_attention",
    ),
    ("caches exchanged", "past, read = (None, None)", "read, past = (None, None)"),
    (
        "no self-attention in the decoder",
        "x = self.around_self_attention(x, lambda h: self.self_attention(h, **own))",
        "x = self.around_self_attention(x, lambda h: h)",
    ),
    (
        "feed-forward before cross-attention",
        "x = self.around_cross_attention(x, lambda h: self.cross_attention(h, memory, **cross))\n"
        "        return self.around_feed_forward(x, self.feed_forward)",
        "x = self.around_feed_forward(x, self.feed_forward)\n"
        "        return self.around_cross_attention(\n"
        "            x, lambda h: self.cross_attention(h, memory, **cross)\n        )",
    ),
    (
        "shared key-value heads ignored",
        '"dropout": attention_dropout}\n        heads |= {"bias": bias}\n',
        '"dropout": attention_dropout}\n        heads |= {"bias": bias, "n_kv_heads": None}\n',
    ),
    # converters and refusals
    ("eps not copied", 'for setting in {"eps", "p"}', 'for setting in {"p"}'),
    ("dropout rates not copied", 'for setting in {"eps", "p"}', 'for setting in {"eps"}'),
    (
        "pre and post exchanged on the way from torch",
        '"pre" if layer.norm_first else "post"',
        '"post" if layer.norm_first else "pre"',
    ),
    (
        "any activation taken for the first",
        "activation = next(same, None)",
        'activation = next(same, "relu")',
    ),
    ("any layer accepted", "if not isinstance(layer, kind):", "if False:"),
    ("another batch of memory accepted", " or shape[0] != shapes[0][0]", ""),
    ("a selection forgets the memory", "for cache in self:", "for cache in self[:1]:"),
]
