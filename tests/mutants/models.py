MUTANTS = [
    (
        "embeddings are not scaled by sqrt(D)",
        "self.embedding(tokens) * self.scale",
        "self.embedding(tokens)",
    ),
    (
        "embeddings are scaled by D",
        "self.scale = math.sqrt(config.d_model)",
        "self.scale = config.d_model",
    ),
    (
        "embeddings keep torch's N(0, 1)",
        "nn.init.normal_(weight, std=self.config.d_model**-0.5)",
        "pass",
    ),
    ("the output is not tied", "output.weight = self.embedding.weight", "pass"),
    (
        "the output copies the embedding instead of sharing it",
        "output.weight = self.embedding.weight",
        "output.weight = nn.Parameter(self.embedding.weight.detach().clone())",
    ),
    (
        "positions are left out",
        "if self.positions is not None:\n            x =",
        "if False:\n            x =",
    ),
    (
        "every token decoded with a cache gets position 0",
        "x = self._embed(target, self._cached(cache))",
        "x = self._embed(target)",
    ),
    (
        "the final norms are left out",
        "if not config.has_final_norm:",
        "if True:",
    ),
    ("the encoder's final norm is skipped", "return self.encoder_norm(x)", "return x"),
    ("the decoder's final norm is skipped", "self.output(self.decoder_norm(x))", "self.output(x)"),
    (
        "padding is visible to cross-attention",
        "self.decode(target, memory, source_mask,",
        "self.decode(target, memory, None,",
    ),
    ("padding is visible to the encoder", "x = layer(x, source_mask)", "x = layer(x)"),
    (
        "the target mask is dropped",
        "layer(x, memory, target_mask, memory_mask,",
        "layer(x, memory, None, memory_mask,",
    ),
    (
        "one layer stands in for all layers of a stack",
        "nn.ModuleList(layer(*sizes, **options, **modules()) for _ in range(depth))",
        "nn.ModuleList([layer(*sizes, **options, **modules())] * depth)",
    ),
    (
        "the decoder has the encoder's depth",
        "_stack(DecoderLayer, config.n_decoder_layers",
        "_stack(DecoderLayer, config.n_encoder_layers",
    ),
    ("dropout of the embeddings is forgotten", "Dropout(config.dropout)", "nn.Identity()"),
    (
        "attention dropout is forgotten",
        '"bias": config.bias, "dropout": config.attention_dropout',
        '"bias": config.bias, "dropout": 0.0',
    ),
    (
        "the decoder's relative buckets look both ways",
        "DecoderLayer, config.n_decoder_layers, both=False",
        "DecoderLayer, config.n_decoder_layers, both=True",
    ),
    (
        "the cache holds only max_len - 1 positions",
        "KVCache(max_len), KVCache()",
        "KVCache(max_len - 1), KVCache()",
    ),
    (
        "tokens may equal vocab_size",
        'given = {"source": (source, "B S", int, self.config.vocab_size)}',
        'given = {"source": (source, "B S", int, self.config.vocab_size + 1)}',
    ),
    (
        "negative tokens are let through",
        'given: dict[str, Any] = {"target": (target, "B T", int',
        'given: dict[str, Any] = {"target": (target.clamp_min(0), "B T", int',
    ),
    (
        "pre-norm models end without a norm",
        'return self.norm == "pre" if',
        'return self.norm == "post" if',
    ),
    ("big has the base model's heads", '"n_heads": 16', '"n_heads": 8'),
    (
        "base has another vocabulary",
        "def base(cls, vocab_size: int = 37_000",
        "def base(cls, vocab_size: int = 32_000",
    ),
    (
        "dropout 1.0 is accepted",
        "allowed = RATE if field.type is float else",
        'allowed = "a number in [0, 1]" if field.type is float else',
    ),
    # without an encoder
    (
        "a decoder-only model's relative buckets look both ways",
        "EncoderLayer, config.n_decoder_layers, both=False",
        "EncoderLayer, config.n_decoder_layers, both=True",
    ),
    (
        "a decoder-only model has the encoder's depth",
        "_stack(EncoderLayer, config.n_decoder_layers",
        "_stack(EncoderLayer, config.n_encoder_layers",
    ),
    ("a decoder-only model sees the future", "causal = n_new > 1", "causal = False"),
    (
        "padding is visible to a decoder-only model",
        "(earlier if mask is None else mask & earlier), False",
        "earlier, False",
    ),
    (
        "a decoder-only model with padding sees the future",
        "(earlier if mask is None else mask & earlier), False",
        "(earlier if mask is None else mask), False",
    ),
    (
        "padding takes a position",
        "mask[:, 0, 0].cumsum(dim=-1) - 1",
        "mask[:, 0, 0].cumsum(-1) * 0",
    ),
    (
        "padding before the first token stands at -1",
        ".clamp_min(0)[:, first:]",
        "[:, first:]",
    ),
    ("all layers write into one cache", "cache=cache[i] if cache", "cache=cache[0] if cache"),
    ("positions begin at 1", "cumsum(dim=-1) - 1)", "cumsum(dim=-1))"),
    (
        "places of the beginning for a later part",
        "clamp_min(0)[:, first:]",
        "clamp_min(0)[:, :n_new]",
    ),
    ("a decoder-only model forgets its position", "cache[0].length if cache else 0", "0"),
    (
        "a decoder-only model's final states are not normalized",
        "return self.decoder_norm(self._through(x, mask, causal, cache))",
        "return self._through(x, mask, causal, cache)",
    ),
    ("a mask of any length", 'sizes = {"1": 1, "S": first + n_new}', 'sizes = {"1": 1}'),
    (
        "a mask of any type",
        'mask=(mask, "#B 1 1 S", bool)',
        'mask=(mask if mask is None else mask.bool(), "#B 1 1 S", bool)',
    ),
    ("a mask for other rows", 'mask=(mask, "#B 1 1 S", bool)', 'mask=(mask, "C 1 1 S", bool)'),
    (
        "a decoder-only model's cache may lack a layer",
        "if cache is not None and len(cache) != n:",
        "if cache and len(cache) > n:",
    ),
    (
        "a decoder-only model's cache holds only max_len - 1 positions",
        "return [KVCache(max_len) for",
        "return [KVCache(max_len - 1) for",
    ),
    (
        "a pre-norm decoder-only keeps sqrt(D)",
        "config, self.scale = self.config, 1.0",
        "config = self.config",
    ),
    ("GPT-2's matrices start larger", "std: float = 0.02", "std: float = 0.05"),
    (
        "the layers that write to the stream start like all others",
        "std=std / math.sqrt(2 * config.n_decoder_layers)",
        "std=std",
    ),
    ("sinusoids drown the small token vectors", "amplitude=std", "amplitude=1.0"),
    (
        "a post-norm decoder-only predicts the token that it has read",
        "min(1.0, 4 / math.sqrt(config.d_model))",
        "1.0",
    ),
    (
        "options of any type",
        "            require(own, **{field.name: (getattr(self, field.name), allowed)})\n",
        "            pass\n",
    ),
    (
        "a mask of two dimensions",
        '"#B H #S S", bool',
        '"#B H #S S" if source_mask is None or source_mask.dim() == 4 else "...", bool',
    ),
    ("padding may part the tokens of a prompt", "if readable and self._splits(mask):", "if False:"),
]
