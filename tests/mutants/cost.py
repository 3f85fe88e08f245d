MUTANTS = [
    (
        "parameters count gates once",
        'inner = 2 * F if config.activation in ("swiglu", "geglu") else F',
        "inner = F",
    ),
    ("parameters forget the projections' biases", "bias * 2 * (D + kv_width)", "bias * 2 * D"),
    (
        "the output is counted although it is tied",
        "D * (1 if config.tie_embeddings else 2)",
        "D * 2",
    ),
    (
        "RMSNorm is counted with a shift",
        'norm = D if config.norm_type == "rms" else 2 * D',
        "norm = 2 * D",
    ),
    (
        "a decoder layer has two norms",
        "2 * attention + feed_forward + 3 * norm",
        "2 * attention + feed_forward + 2 * norm",
    ),
    (
        "a multiply-add counts once",
        "attention_flops=sequences * pairs * 2 * D",
        "attention_flops=batch_size * pairs * 2 * D",
    ),
    (
        "cross-attention's keys are counted as the target's",
        "keys=n_encoder * S + n_decoder * (T + S)",
        "keys=n_encoder * S + n_decoder * (T + T)",
    ),
    (
        "the backward pass costs as much as the forward",
        "return 3 * self.forward_flops",
        "return 2 * self.forward_flops",
    ),
    (
        "the cache forgets the memory",
        "cached=n_decoder * (T + S)",
        "cached=n_decoder * T",
    ),
    ("one bias table for both stacks", "_ends(config, n_stacks=2)", "_ends(config, n_stacks=1)"),
    ("two bias tables for one stack", "_ends(config, n_stacks=1)", "_ends(config, n_stacks=2)"),
    ("a learned table is forgotten", '"learned": config.max_len * D, ', ""),
    ("a cache holds keys alone", "cache_bytes=2 * batch_size", "cache_bytes=batch_size"),
    (
        "a writer's layer has three norms",
        "n_layers * (attention + feed_forward + 2 * norm)",
        "n_layers * (attention + feed_forward + 3 * norm)",
    ),
    ("a causal mask halves the products", "pairs=n_layers * T * T", "pairs=n_layers * T * T // 2"),
    (
        "a writer as deep as an encoder",
        "n_layers, T = config.n_decoder_layers, length",
        "n_layers, T = config.n_encoder_layers, length",
    ),
    ("negative sizes are let through", "if min(sizes) < 0:", "if max(sizes) < 0:"),
]
