"""Ways to break cpu.py, each of which tests/test_cpu.py must notice."""

MUTANTS = [
    # products
    (
        "other formats asked, too",
        "x.dtype == weight.dtype == torch.float32",
        "x.dtype == weight.dtype",
    ),
    (
        "two formats at once",
        "x.dtype == weight.dtype == torch.float32",
        "x.dtype == torch.float32 or weight.dtype == torch.float32",
    ),
    ("widths not compared", "        and x.shape[-1] == weight.shape[-1]\n", ""),
    ("nothing is multiplied", "        and x.numel() > 0\n", ""),
    ("mixed precision ignored", '        and not torch.is_autocast_enabled("cpu")\n', ""),
    ("a compiler meets oneDNN", "not torch.compiler.is_compiling()\n        and ", ""),
    (
        "oneDNN is never asked",
        "        and torch.backends.mkldnn.is_available()\n",
        "        and False\n",
    ),
    (
        "the bias is forgotten",
        'mkldnn._linear_pointwise(x, weight, bias, "none"',
        'mkldnn._linear_pointwise(x, weight, None, "none"',
    ),
    ("an activation slips in", '"none", [], "")', '"relu", [], "")'),
    (
        "the gradient takes the weight as it is",
        "_ask(rows, weight.T)",
        "_ask(rows, weight.T * 1.01)",
    ),
    ("frozen inputs get a gradient", "if needs[0] else None", "if True else None"),
    ("frozen weights cost a product", "if needs[1] else None", "if True else None"),
    ("frozen biases get a gradient", "if needs[2] else None", "if True else None"),
    ("the bias learns from the mean", "rows.sum(dim=0)", "rows.mean(dim=0)"),
    (
        "no gradient passes",
        "_Product.apply(x, weight, bias) if torch.is_grad_enabled() else _ask(x, weight, bias)",
        "_ask(x, weight, bias)",
    ),
    (
        "parameters are copied",
        "self.weight, self.bias = linear.weight, linear.bias",
        "self.weight, self.bias = nn.Parameter(linear.weight.clone()), linear.bias",
    ),
    ("the mode is forgotten", "        self.train(linear.training)\n", ""),
    (
        "the widths are swapped",
        "self.in_features, self.out_features = linear.in_features, linear.out_features",
        "self.in_features, self.out_features = linear.out_features, linear.in_features",
    ),
    # models
    (
        "attentions are left out",
        "        if isinstance(parent, MultiHeadAttention):",
        "        if False:",
    ),
    ("by_onednn packs", "    _replace(model, _Linear)\n", "    _replace(model, _PackedLinear)\n"),
    ("by_onednn replaces nothing", "    _replace(model, _Linear)\n", ""),
    # packing
    (
        "packed although it learns",
        "if torch.is_grad_enabled() or not _usable(x, weight):",
        "if not _usable(x, weight):",
    ),
    (
        "packed whatever it is",
        "if torch.is_grad_enabled() or not _usable(x, weight):",
        "if torch.is_grad_enabled():",
    ),
    (
        "packed at every call",
        "if self._packed is None or self._packed[:2] != (weight.data_ptr(), weight._version):",
        "if True:",
    ),
    ("never packed again", " or self._packed[:2] != (weight.data_ptr(), weight._version):", ":"),
    (
        "changes in place unseen",
        "self._packed[:2] != (weight.data_ptr(), weight._version)",
        "self._packed[0] != weight.data_ptr()",
    ),
    (
        "another tensor unseen",
        "self._packed[:2] != (weight.data_ptr(), weight._version)",
        "self._packed[1] != weight._version",
    ),
    (
        "the packed map forgets its bias",
        "_ask(x, self._packed[2], self.bias)",
        "_ask(x, self._packed[2])",
    ),
    # one token
    (
        "positions from zero",
        "scheme.rotate(q, past.length), scheme.rotate(k, past.length)",
        "scheme.rotate(q, 0), scheme.rotate(k, 0)",
    ),
    (
        "keys are not turned",
        "q, k = scheme.rotate(q, past.length), scheme.rotate(k, past.length)",
        "q = scheme.rotate(q, past.length)",
    ),
    ("keys for values", "past.append(k, v)", "past.append(k, k)"),
    ("the bias of positions is forgotten", "    if bias is not None:\n", "    if False:\n"),
    (
        "a bias hides the mask",
        "bias if mask is None else bias.masked_fill(~mask, -math.inf)",
        "bias",
    ),
    ("the mask is forgotten", "attn_mask=mask", "attn_mask=None if scheme is None else mask"),
    (
        "heads in another order",
        "q.reshape(B, G, H // G, K)",
        "q.reshape(B, H // G, G, K).transpose(1, 2)",
    ),
    ("pre-norm as post-norm", "if isinstance(first, PreNorm):", "if False:"),
    ("post-norm as pre-norm", "if isinstance(first, PreNorm):", "if True:"),
    (
        "the first residual is forgotten (pre)",
        "first.norm(x), mask, past).add_(x)",
        "first.norm(x), mask, past)",
    ),
    (
        "the second residual is forgotten (pre)",
        "layer.feed_forward(second.norm(x)).add_(x)",
        "layer.feed_forward(second.norm(x))",
    ),
    (
        "the first residual is forgotten (post)",
        "layer.attention, x, mask, past).add_(x)",
        "layer.attention, x, mask, past)",
    ),
    (
        "the second residual is forgotten (post)",
        "layer.feed_forward(x).add_(x)",
        "layer.feed_forward(x)",
    ),
    ("no cache is asked for", "cache is None or ", ""),
    ("many tokens take the short way", "x.shape[1] != 1 or ", ""),
    ("training takes the short way", "self.training or ", ""),
    ("watchers see nothing", " or watched:", ":"),
    (
        "every token takes the layers",
        "if cache is None or x.shape[1] != 1",
        "if True or x.shape[1] != 1",
    ),
    # the copy
    ("the original is changed", "copy.deepcopy(model)", "model"),
    ("the copy trains", ".eval().requires_grad_(False)", ".requires_grad_(False)"),
    ("the copy learns", ".eval().requires_grad_(False)", ".eval()"),
    (
        "the copy is an inference tensor",
        "torch.inference_mode(False)",
        "torch.inference_mode(torch.is_inference_mode_enabled())",
    ),
    ("nothing is packed", "    _replace(ours, _PackedLinear)\n", ""),
    (
        "packed twice",
        "type(model) not in (Transformer, DecoderOnly)",
        "not isinstance(model, Transformer | DecoderOnly)",
    ),
    (
        "anything is packed",
        "    if type(model) not in (Transformer, DecoderOnly):",
        "    if False:",
    ),
    ("the short way is not taken", "    if isinstance(ours, DecoderOnly):", "    if False:"),
]
