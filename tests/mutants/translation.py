"""Ways to break translation.py, each of which tests/test_translation.py must notice."""

MUTANTS = [
    # Translator
    ("a model and a tokenizer of other sizes", "if sizes[0] != sizes[1]:", "if False:"),
    (
        "a folder hides shipped weights",
        "folder = shipped / folder if str(folder) in names else Path(folder)",
        "folder = Path(folder) if Path(folder).exists() else shipped / folder",
    ),
    ("a broken file is not explained", "ValueError, SafetensorError)", "ValueError)"),
    ("a wrong config is not explained", "except (OSError, TypeError,", "except (OSError,"),
    ("loaded ready to train", "model = Transformer(config).eval()", "model = Transformer(config)"),
    ("the output layer not loaded", "if config.tie_embeddings:", "if False:"),
    (
        "weights may be missing",
        "model.load_state_dict(weights)",
        "model.load_state_dict(weights, strict=False)",
    ),
    ("one text is many letters", "if isinstance(texts, str):", "if False:"),
    ("the end has no room", "if len(source) >= room:", "if len(source) > room:"),
    ("no text is an error", "if not sources:", "if sources is None:"),
    (
        "batches of any size",
        "max_tokens=max_tokens, shuffle=False",
        "max_tokens=4096, shuffle=False",
    ),
    (
        "translations in the order of lengths",
        "zip(which.tolist(), rows, strict=True)",
        "zip(sorted(which.tolist()), rows, strict=True)",
    ),
    (
        "padding is read",
        "mask = padding_mask(batch.source_lengths.to(self._device), source.shape[1])",
        "mask = None",
    ),
    ("a translation is cut at the source's length", "2 * source.shape[1] + 10", "source.shape[1]"),
    (
        "longer than the positions",
        "max_len = min(room, 2 * source.shape[1] + 10)",
        "max_len = 2 * source.shape[1] + 10",
    ),
    ("greedy whatever is asked for", "if beam == 1:", "if beam >= 1:"),
    (
        "the length penalty ignored",
        "length_penalty=length_penalty, patience",
        "length_penalty=1.0, patience",
    ),
    ("another patience", "patience=1.0,", "patience=9.0,"),
    ("the worst hypothesis", "hypotheses[0].tokens", "hypotheses[-1].tokens"),
    ("white space is translated", 'if texts[i].strip() else ""', ""),
    # alignment
    ("a layer from nowhere", "if not -n_layers <= layer < n_layers:", "if False:"),
    ("the source has no end", "s, t = ([*ids, END] for ids", "s, t = ([*ids, *ids[-1:]] for ids"),
    ("the decoder reads what it writes", "[BEGIN, *t[:-1]]", "t"),
    (
        "dropout in the picture",
        "with recording(self.model) as seen, _evaluating(trained):",
        "with recording(self.model) as seen:",
    ),
    ("another attention", 'if "cross_attention" in name', 'if "decoder" in name'),
    ("one head for all", "crossing[layer][0].mean(dim=0)", "crossing[layer][0][0]"),
    # score
    (
        "cased Moses",
        "tokenise(normalise(text.lower()), return_str=True)",
        "tokenise(normalise(text), return_str=True)",
    ),
    (
        "lower-cased too late",
        "tokenise(normalise(text.lower()), return_str=True)",
        "tokenise(normalise(text), return_str=True).lower()",
    ),
    (
        "punctuation not normalised",
        "tokenise(normalise(text.lower()), return_str=True)",
        "tokenise(text.lower(), return_str=True)",
    ),
    ("Moses in English", "moses.MosesTokenizer(lang=language)", 'moses.MosesTokenizer(lang="en")'),
    (
        "cased spaCy",
        "str(token).lower() for token in tokenise(text)",
        "str(token) for token in tokenise(text)",
    ),
    (
        "lower-cased before spaCy",
        "for token in tokenise(text))",
        "for token in tokenise(text.lower()))",
    ),
    (
        "unequal numbers of texts",
        "if not 0 < len(hypotheses) == len(references):",
        "if not len(hypotheses):",
    ),
    (
        "no texts",
        "if not 0 < len(hypotheses) == len(references):",
        "if len(hypotheses) != len(references):",
    ),
    ("any protocol", "if protocol not in PROTOCOLS:", "if False:"),
    (
        "references not prepared",
        "for text in side] for side in sides]",
        "for text in side] for side in sides[:1]] + sides[1:]",
    ),
    ("tokens cut again", 'metric = bleu(tokenize="none", force=True)', "metric = bleu(force=True)"),
    ("warnings about tokens", 'bleu(tokenize="none", force=True)', 'bleu(tokenize="none")'),
    (
        "references scored",
        "metric.corpus_score(sides[0], [sides[1]])",
        "metric.corpus_score(sides[1], [sides[0]])",
    ),
    ("lengths swapped", "n_hypothesis=result.sys_len", "n_hypothesis=result.ref_len"),
    (
        "a signature without what came before",
        '{metric.get_signature()}{before}"',
        '{metric.get_signature()}"',
    ),
    # record_scores
    (
        "recipes of other corpora",
        'if names[0] != "multi30k" or len(names) != 3:',
        "if len(names) != 3:",
    ),
    ("the wrong direction", "multi30k(names[1], names[2],", "multi30k(names[2], names[1],"),
    ("another split", '"test_2016_flickr")', '"val")'),
    ("greedy under the name of beam", '("hypotheses", 5)', '("hypotheses", 1)'),
    ("one translation in two lines", 'text.replace("\\n", " ") for text', "text for text"),
    ("scored in the source's language", "language=names[2]", "language=names[1]"),
    ("any package may be missing", 'if protocol != "spacy-lower":', "if False:"),
    ("spaCy is a must", 'if protocol != "spacy-lower":', "if True:"),
    ("the whole log", 'if "loss" not in r or r["step"] % 10 == 1', ""),
    (
        "a log without validations",
        'if "loss" not in r or r["step"] % 10 == 1',
        'if r["step"] % 10 == 1',
    ),
    ("a run without a checkpoint", "if checkpoint is None:", "if False:"),
    ("the hash of nothing", "hashlib.sha256(weights)", "hashlib.sha256()"),
    ("the last validation's step", 'state["best"][0]', 'state["best"][1]'),
    ("an edited tree looks clean", '"--dirty=+", ', ""),
    ("no git, no record", "except (OSError, subprocess.CalledProcessError):", "except OSError:"),
]
