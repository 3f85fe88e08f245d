"""Deliberate faults in transformer_lib/layers.py; tests/test_layers.py must catch each."""

MUTANTS = [
    (
        "the nonlinearity is gone",
        "hidden = self.act(self.up(x) if self.gate is None else self.gate(x))",
        "hidden = self.up(x) if self.gate is None else self.act(self.gate(x))",
    ),
    (
        "gelu computed as silu",
        '"gelu": F.gelu',
        '"gelu": F.silu',
    ),
    (
        "the two gates exchanged",
        '"swiglu": F.silu, "geglu": F.gelu',
        '"swiglu": F.gelu, "geglu": F.silu',
    ),
    (
        "the wrong projection gates",
        "else self.gate(x))  # (*batch, F)\n"
        "        hidden = hidden if self.gate is None else hidden * self.up(x)",
        "else self.up(x))  # (*batch, F)\n"
        "        hidden = hidden if self.gate is None else hidden * "
        "self.gate(x)",
    ),
    (
        "gate added, not multiplied",
        "hidden * self.up(x)",
        "hidden + self.up(x)",
    ),
    (
        "hidden units never dropped",
        "self.down(self.dropout(hidden))",
        "self.down(hidden)",
    ),
    (
        "hidden units dropped in evaluation too",
        "self.down(self.dropout(hidden))",
        "self.down(F.dropout(hidden, self.dropout.p))",
    ),
    (
        "the gate is not initialized by Glorot",
        "filter(None, (self.gate, self.up, self.down))",
        "(self.up, self.down)",
    ),
    (
        "d_ff not used",
        "self.up = nn.Linear(d_model, d_ff, bias=bias)\n"
        "        self.dropout = nn.Dropout(dropout)\n"
        "        self.down = nn.Linear(d_ff, d_model, bias=bias)",
        "self.up = nn.Linear(d_model, d_model, bias=bias)\n"
        "        self.dropout = nn.Dropout(dropout)\n"
        "        self.down = nn.Linear(d_model, d_model, bias=bias)",
    ),
    (
        "the second matrix keeps its bias",
        "self.down = nn.Linear(d_ff, d_model, bias=bias)",
        "self.down = nn.Linear(d_ff, d_model)",
    ),
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
    (
        "RMSNorm's eps changed",
        "eps: float = 1e-6",
        "eps: float = 1e-5",
    ),
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
    (
        "norm_type ignored",
        "kind = _NORMS[norm_type]",
        "kind = nn.LayerNorm",
    ),
    (
        "the mask forgotten",
        'options: dict[str, Any] = {"mask": mask, ',
        'options: dict[str, Any] = {"mask": None, ',
    ),
    (
        "causal forgotten",
        '"causal": causal, "cache": cache}',
        '"causal": False, "cache": cache}',
    ),
    (
        "the encoder's cache forgotten",
        '"causal": causal, "cache": cache}',
        '"causal": causal}',
    ),
    (
        "no feed-forward in the encoder",
        "x = self.attention_residual(x, lambda h: self.attention(h, "
        "**options))\n"
        "        return self.feed_forward_residual(x, self.feed_forward)",
        "x = self.attention_residual(x, lambda h: self.attention(h, "
        "**options))\n"
        "        return self.feed_forward_residual(x, lambda h: h)",
    ),
    (
        "one residual connection for both sublayers",
        "self.feed_forward_residual = _residual(*residual)\n"
        "\n"
        "    def forward(\n"
        '        self, x: Float[Tensor, "B T D"], mask',
        "self.feed_forward_residual = self.attention_residual\n"
        "\n"
        "    def forward(\n"
        '        self, x: Float[Tensor, "B T D"], mask',
    ),
    (
        "encoder without positions",
        'heads |= {"bias": bias, "positions": positions}',
        'heads |= {"bias": bias}',
    ),
    (
        "the decoder sees the future",
        '"mask": mask, "causal": True',
        '"mask": mask, "causal": False',
    ),
    (
        "the target's mask dropped",
        '{"mask": mask, "causal": True',
        '{"mask": None, "causal": True',
    ),
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
        "self.cross_attention = cross_attention or MultiHeadAttention(d_model, n_heads, **heads)",
        "self.cross_attention = self.self_attention",
    ),
    (
        "caches exchanged",
        "past, read = (None, None)",
        "read, past = (None, None)",
    ),
    (
        "no self-attention in the decoder",
        "x = self.self_attention_residual(x, lambda h: self.self_attention(h, **own))",
        "x = self.self_attention_residual(x, lambda h: h)",
    ),
    (
        "feed-forward before cross-attention",
        "x = self.cross_attention_residual(x, lambda h: "
        "self.cross_attention(h, memory, **cross))\n"
        "        return self.feed_forward_residual(x.view(shape), self.feed_forward)",
        "x = self.feed_forward_residual(x, self.feed_forward)\n"
        "        x = self.cross_attention_residual(\n"
        "            x, lambda h: self.cross_attention(h, memory, **cross)\n"
        "        )\n"
        "        return x.view(shape)",
    ),
    (
        "a memory is repeated for neighboring rows",
        "x = x.reshape(N, -1, shape[2])",
        "memory = memory.repeat(len(x) // N, 1, 1)",
    ),
    (
        "shared key-value heads ignored",
        '"dropout": attention_dropout}\n        heads |= {"bias": bias}\n',
        '"dropout": attention_dropout}\n        heads |= {"bias": bias, "n_kv_heads": None}\n',
    ),
    (
        "older names of a gate in the wrong order",
        'else ["gate", "up"]\n        for kind',
        'else ["up", "gate"]\n        for kind',
    ),
    (
        "older names of residuals not accepted",
        'state[f"{prefix}{sublayer}_residual.{rest}"] = state.pop(key)',
        "pass",
    ),
]
