"""Ways to break recipes.py, each of which tests/test_recipes.py must notice."""

MUTANTS = [
    (
        "tokens learned from the validation too",
        "for pair in train for text in pair",
        "for pair in train + val for text in pair",
    ),
    ("training in one order", "cut(train, True)", "cut(train, False)"),
    ("validation shuffled", "list(cut(val, False))", "list(cut(val, True))"),
    ("the seed does not reach the data", "seed = self.training.seed", "seed = 0"),
    ("the model has other tokens", "vocab_size=tokenizer.vocab_size,", "vocab_size=280,"),
    (
        "validates on what was learned",
        'learned if split == "train" else held)',
        "learned)",
    ),
    (
        "the languages exchanged",
        "partial(_datasets.multi30k, source, target)",
        "partial(_datasets.multi30k, target, source)",
    ),
    (
        "validated more often than saved",
        "warmup=600, validate_every=500",
        "warmup=600, validate_every=375",
    ),
    ("the average not exported", 'tensors.get("average", tensors["model"])', 'tensors["model"]'),
    ("exported in full precision", "x.half().contiguous()", "x.contiguous()"),
    ("an export without checkpoints", "if trainer.folder is None:", "if False:"),
    (
        "the last exported, not the best",
        "source = best if best.exists() else newest_good(trainer.folder)",
        "source = newest_good(trainer.folder)",
    ),
    (
        "tokens learned from the sources alone",
        "(text for pair in train for text in pair)",
        "(pair[0] for pair in train)",
    ),
    ("labels not smoothed", "smoothing=0.1", "smoothing=0.0"),
    ("an empty split is accepted", "if not pairs:", "if False:"),
    (
        "another run's checkpoint is exported",
        "if trainer.step == 0 or source is None:",
        "if source is None:",
    ),
    ("an export of another tokenizer", "if sizes[0] != sizes[1]:", "if False:"),
    ("an export deletes other files", "    check_export_folder(folder)\n", "    pass\n"),
    ("files beside an export are deleted", "(other or not {*_EXPORTED}", "(not {*_EXPORTED}"),
    ("a folder of other libraries is replaced", " or not _is_ours(folder))", ")"),
    ("hashes are not compared", "if _sha256(folder / name) != hashes[name]:", "if False:"),
    ("loaded ready to train", "model = Transformer(config).eval()", "model = Transformer(config)"),
    ("the output layer not loaded", "if config.tie_embeddings:", "if False:"),
    (
        "weights may be missing",
        "model.load_state_dict(weights)",
        "model.load_state_dict(weights, strict=False)",
    ),
    (
        "trains on the tens alone",
        "random.Random(0).sample(range(10_000), 5000)",
        "[*range(1, 1001), *range(0, 10_000, 10), *range(0, 9_000, 3)]",
    ),
]
