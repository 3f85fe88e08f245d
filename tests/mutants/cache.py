"""Deliberate faults in transformer_lib/cache.py; tests/test_cache.py must catch each."""

MUTANTS = [
    (
        "cache forgets what came before",
        "keys, values = self._buffer.narrow(3, 0, self.length)",
        "keys, values = self._buffer.narrow(3, max(self.length - 1, 0), 1)",
    ),
    (
        "cache overwrites from the start",
        "self._buffer.narrow(3, self.length, n_new)",
        "self._buffer.narrow(3, 0, n_new)",
    ),
    (
        "cache returns its empty room too",
        "keys, values = self._buffer.narrow(3, 0, self.length)",
        "keys, values = self._buffer",
    ),
    (
        "cache keeps keys as values",
        "values.copy_(value)",
        "values.copy_(key)",
    ),
    (
        "cache allocates twice its capacity",
        "key.new_empty(2, batch, heads, self.max_len, width)",
        "key.new_empty(2, batch, heads, 2 * self.max_len, width)",
    ),
    (
        "cache lets too much in by one",
        "and end > self.max_len:",
        "and end > self.max_len + 1:",
    ),
    (
        "cache takes tensors with gradients",
        "if torch.is_grad_enabled() and (",
        "if False and (",
    ),
    (
        "cache takes another dtype",
        '"key": (key, "B G T K"), "value": (value, "B G T K")',
        '"key": (key, "B G T K", float), "value": (value, "B G T K", float)',
    ),
    (
        "a selection takes keys for values",
        "for part, kept in zip(old, self.stored(), strict=True):",
        "for part, kept in zip((old[0], old[0]), self.stored(), strict=True):",
    ),
    (
        "a selection leaves the last position behind",
        "torch.index_select(part, 0, rows, out=kept)",
        "torch.index_select(part[:, :, :-1], 0, rows, out=kept[:, :, :-1])",
    ),
    (
        "a selection overwrites what was handed out",
        "buffer.new_empty(2, len(rows), *buffer.shape[2:])",
        "buffer[:, : len(rows)]",
    ),
    (
        "a selection takes any row",
        'rows=(rows, "N", int, len(old[0]))',
        'rows=(rows, "N", int, len(old[0]) + 1)',
    ),
    (
        "a cut cuts nothing",
        'f"an integer in [0, {self.length}]"))\n        self.length = length\n\n    @property\n'
        '    def n_bytes(self) -> int:\n        """The bytes allocated for 2 B',
        'f"an integer in [0, {self.length}]"))\n\n    @property\n'
        '    def n_bytes(self) -> int:\n        """The bytes allocated for 2 B',
    ),
    (
        "a crop may lengthen",
        'require("KVCache.crop", length=(length, f"an integer in [0, {self.length}]"))',
        'require("KVCache.crop", length=(length, "an integer at least 0"))',
    ),
    (
        "a crop counts from the end",
        'require("KVCache.crop", length=(length, f"an integer in [0, {self.length}]"))',
        'require("KVCache.crop", length=(length, f"an integer in [-9, {self.length}]"))',
    ),
    (
        "a cache on another device accepted",
        'stored=(self._buffer, "2 B',
        'stored=(self._buffer.to(key.device), "2 B',
    ),
    (
        "a selection forgets the memory",
        "for cache in self:",
        "for cache in self[:1]:",
    ),
    (
        "a window keeps one position too few",
        "self._kept, self._recent = window, window - 1 + spare",
        "self._kept, self._recent = window, window - 2 + spare",
    ),
    (
        "a window hands out what it has",
        "first = max(self._recent.length - self.window + 1, 0)",
        "first = 0",
    ),
    (
        "a window keeps a long prompt",
        "if keys.shape[2] > self._size:",
        "if keys.shape[2] < 0:",
    ),
    (
        "a window takes back what it has dropped",
        "if left < min(length, self.window - 1):",
        "if left < 0:",
    ),
    (
        "a window has no capacity",
        "if self.max_len is not None and end > self.max_len:",
        "if self.max_len == 0:",
    ),
    (
        "a window forgets its rows",
        "self._recent.select(rows)",
        "self._recent.stored()",
    ),
    (
        "a window is cut at another place",
        "self._recent.crop(left)",
        "self._recent.crop(max(left - 1, 0))",
    ),
]
