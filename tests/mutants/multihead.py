"""Deliberate faults in transformer_lib/multihead.py; tests/test_multihead.py must catch each."""

MUTANTS = [
    (
        "heads split without a transpose",
        "heads = self.in_proj(x, rows).unflatten(-1, (-1, self.d_head)).transpose(1, 2)",
        "y = self.in_proj(x, rows)\n        heads = y.reshape(len(y), -1, y.shape[1], self.d_head)",
    ),
    (
        "heads split into interleaved features",
        ".unflatten(-1, (-1, self.d_head)).transpose(1, 2)",
        ".unflatten(-1, (self.d_head, -1)).permute(0, 3, 1, 2)",
    ),
    (
        "heads merged without a transpose",
        "self.out_proj(mixed.transpose(1, 2).flatten(2))",
        "self.out_proj(mixed.reshape(len(mixed), mixed.shape[2], -1))",
    ),
    (
        "keys and values packed in the other order",
        "q, k, v = self._project(query, 0, 3)",
        "q, v, k = self._project(query, 0, 3)",
    ),
    (
        "queries and keys packed in the other order",
        "q, k, v = self._project(query, 0, 3)",
        "k, q, v = self._project(query, 0, 3)",
    ),
    (
        "shared heads dealt out in turns",
        "k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)",
        "k, v = k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)",
    ),
    (
        "groups of a single query in the other order",
        "grouped = q.unflatten(1, (-1, group)).squeeze(3)",
        "grouped = q.unflatten(1, (group, -1)).squeeze(3).transpose(1, 2)",
    ),
    (
        "shared keys copied for a single query",
        "if group > 1 and q.shape[2] == 1 and bias is None",
        "if group > 8 and bias is None",
    ),
    (
        "single query forgets the bias of positions",
        "and q.shape[2] == 1 and bias is None and not recorded:",
        "and q.shape[2] == 1 and not recorded:",
    ),
    (
        "single query takes any mask",
        "if mask is None or mask.shape[1:] == (1, 1, k.shape[2]):",
        "if mask is None or mask.dim() == 4:",
    ),
    (
        "single query ignores its mask",
        "attend_unchecked(grouped, k, v, mask, scale=self.scale, dropout=dropout)",
        "attend_unchecked(grouped, k, v, scale=self.scale, dropout=dropout)",
    ),
    (
        "weights of a single query are not recorded",
        "and bias is None and not recorded:",
        "and bias is None:",
    ),
    (
        "rotation starts at 0 with a cache",
        "first = 0 if cache is None else cache.length",
        "first = 0",
    ),
    (
        "keys are not rotated",
        "self.positions.rotate(q, first), self.positions.rotate(k, first)",
        "self.positions.rotate(q, first), k",
    ),
    (
        "bias of positions dropped",
        "bias = None if bias is None else bias[None]  # (1, H, T, S)",
        "bias = None",
    ),
    (
        "bias of positions for the wrong head",
        "bias = None if bias is None else bias[None]  # (1, H, T, S)",
        "bias = None if bias is None else bias.flip(0)[None]",
    ),
    (
        "cross cache computed again",
        "if cache is not None and cache.length:",
        "if False:",
    ),
    (
        "cross cache never filled",
        "return (q, k, v) if cache is None else (q, *cache.append(k, v))\n\n    def _project",
        "return q, k, v\n\n    def _project",
    ),
    (
        "cross cache of another length accepted",
        'sizes = {"B": len(k), "S": cache.length}',
        'sizes = {"B": len(k)}',
    ),
    (
        "value ignored when a key is given",
        "if value is None or value is key:",
        "if key is not None:",
    ),
    (
        "values made by the key's projection",
        "*self._project(value, 2, 3)",
        "*self._project(value, 1, 2)",
    ),
    (
        "biases of the projections dropped",
        "None if self.bias is None else self.bias[part])",
        "None)",
    ),
    (
        "dropout outside training",
        "self.dropout if self.training else 0.0",
        "self.dropout",
    ),
    (
        "dropout nowhere",
        "self.dropout if self.training else 0.0",
        "0.0",
    ),
    (
        "causal forgotten when recorded",
        'options: dict[str, Any] = {"causal": causal, ',
        "options: dict[str, Any] = {",
    ),
    (
        "causal forgotten",
        "return attend_unchecked(q, k, v, mask, **options)",
        "return attend_unchecked(q, k, v, mask, **options | {'causal': False})",
    ),
    (
        "edited weights are not used",
        "return self.weights(attend_with_weights(q, k, v, mask, **options)[1]) @ v",
        "mixed, weights = attend_with_weights(q, k, v, mask, **options)\n"
        "            self.weights(weights)\n"
        "            return mixed",
    ),
    (
        "pre-hooks overlooked",
        "weights._forward_hooks or weights._forward_pre_hooks",
        "weights._forward_hooks",
    ),
    (
        "a module in place of weights overlooked",
        "bool(hooks) or type(weights) is not nn.Identity",
        "bool(hooks)",
    ),
    (
        "packed matrix drawn as one",
        "(*self.in_proj.weight.split(self.widths), self.out_proj.weight)",
        "(self.in_proj.weight, self.out_proj.weight)",
    ),
    (
        "recording keeps its hooks",
        "handle.remove()",
        "pass",
    ),
    (
        "recording lets go only if all went well",
        "    finally:\n        for",
        "    except KeyError:\n        pass\n    else:\n        for",
    ),
    (
        "recording keeps the graph",
        "weights.detach()",
        "weights",
    ),
    (
        "recording names every layer after the last",
        "weights, name=name:",
        "weights:",
    ),
    (
        "recording misses compiled models",
        'torch.compiler.set_stance("force_eager") if loaded else nullcontext()',
        "nullcontext()",
    ),
    (
        "indivisible width accepted",
        'f"a multiple of n_heads = {n_heads} above 0"',
        '"an integer above 0"',
    ),
    (
        "indivisible groups accepted",
        'f"a multiple of n_kv_heads = {n_kv_heads} above 0"',
        '"an integer above 0"',
    ),
    (
        "self-attention takes a value",
        "if (value if key is None else self.positions) is not None:",
        "if (None if key is None else self.positions) is not None:",
    ),
    (
        "positions taken in cross-attention",
        "if (value if key is None else self.positions) is not None:",
        "if (value if key is None else None) is not None:",
    ),
    (
        "a whole projection is cut by halves",
        "if last - first == 3 else",
        "if last - first == 2 else",
    ),
]
