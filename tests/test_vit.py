"""vit: equality with the published models' own code, files in both directions, properties."""

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from transformer_lib.batches import LabeledBatch, LabeledBatches
from transformer_lib.cpu import pack_for_decoding, use_onednn
from transformer_lib.hub import from_pretrained
from transformer_lib.losses import label_loss
from transformer_lib.multihead import recording
from transformer_lib.trainer import Trainer, TrainingConfig
from transformer_lib.vit import ViT, ViTConfig

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

# Sizes of the reference's tiny models: distinct primes where they may be.
SIZES = {
    "square": {
        "image_size": 15, "patch_size": 5, "num_channels": 3, "hidden_size": 14,
        "num_attention_heads": 2, "intermediate_size": 23, "num_hidden_layers": 3,
    },
    "rectangle": {
        "image_size": [6, 35], "patch_size": [2, 7], "num_channels": 1, "hidden_size": 33,
        "num_attention_heads": 3, "intermediate_size": 19, "num_hidden_layers": 2,
        "qkv_bias": False,
    },
    "relu": {
        "image_size": [26, 13], "patch_size": 13, "num_channels": 2, "hidden_size": 11,
        "num_attention_heads": 1, "intermediate_size": 7, "num_hidden_layers": 1,
        "hidden_act": "relu", "layer_norm_eps": 1e-3,
    },
    "pixels": {
        "image_size": 3, "patch_size": 1, "num_channels": 5, "hidden_size": 20,
        "num_attention_heads": 5, "intermediate_size": 31, "num_hidden_layers": 4,
        "hidden_act": "silu",
    },
}  # fmt: skip
HEADS = {
    "ViTModel": "ViTConfig",
    "ViTForImageClassification": "ViTConfig",
    "DeiTModel": "DeiTConfig",
    "DeiTForImageClassification": "DeiTConfig",
    "DeiTForImageClassificationWithTeacher": "DeiTConfig",
}
CASES = [(size, head) for size in SIZES for head in HEADS]


def reference(size, head, dtype=torch.float32, **changes):
    """A random model of the reference, whose parameters are far from their initial values."""
    config = getattr(transformers, HEADS[head])(**SIZES[size], num_labels=7, **changes)
    options = {"add_pooling_layer": False} if head.endswith("Model") else {}
    model = getattr(transformers, head)(config, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.to(dtype).eval()


def images_of(model, n=2):
    config = model.config
    size = config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    dtype = next(model.parameters()).dtype
    return torch.randn(n, config.num_channels, height, width, dtype=dtype)


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def states(model, images):
    """What enters the first layer of ours, and what leaves each."""
    seen = []
    hooks = [model.encoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
    hooks += [
        layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
        for layer in model.encoder
    ]
    with torch.no_grad():
        output = model(images)
    for hook in hooks:
        hook.remove()
    return output, seen


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("size, head", CASES)
def test_vit_equals_the_reference_in_each_layer(size, head, dtype, most, tmp_path):
    theirs = reference(size, head, dtype)
    theirs.config._attn_implementation = "sdpa"  # the eager one casts its softmax to float32
    ours = from_pretrained(saved(theirs, tmp_path), dtype=dtype)
    assert type(ours) is ViT and not ours.training
    images = images_of(theirs)
    output, seen = states(ours, images)
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True)
    wanted = expected.last_hidden_state if head.endswith("Model") else expected.logits
    assert (output - wanted).abs().max() < most * wanted.abs().max().clamp_min(1)
    assert len(seen) == len(expected.hidden_states)
    for mine, state in zip(seen, expected.hidden_states, strict=True):
        assert (mine - state).abs().max() < most * state.abs().max().clamp_min(1)


@pytest.mark.parametrize("size, head", CASES)
def test_vit_writes_the_files_that_it_has_read(size, head, tmp_path):
    theirs = reference(size, head)
    ours = from_pretrained(saved(theirs, tmp_path / "theirs"))
    ours.save_pretrained(tmp_path / "ours")
    files = [load_file(tmp_path / who / "model.safetensors") for who in ("theirs", "ours")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    again = getattr(transformers, head).from_pretrained(tmp_path / "ours").eval()
    images = images_of(theirs)
    with torch.no_grad():
        for name in ("last_hidden_state", "logits"):
            if hasattr(theirs(images), name):
                assert torch.equal(getattr(theirs(images), name), getattr(again(images), name))


NEW_NAMES = {  # what Transformers 5 calls its modules: what the published files call them
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "layers": "encoder.layer",
}


@pytest.mark.parametrize("head", HEADS)
def test_vit_reads_the_names_of_both_layouts(head, tmp_path):
    theirs = reference("rectangle", head)
    ours = from_pretrained(saved(theirs, tmp_path))
    published, now = load_file(tmp_path / "model.safetensors"), theirs.state_dict()
    assert published.keys() != now.keys()
    for new, old in NEW_NAMES.items():
        assert all(f".{new}." not in f".{name}" for name in published)
        assert any(f".{new}." in f".{name}" for name in now)
        assert any(f".{old}." in f".{name}" for name in published)
    save_file({name: x.contiguous() for name, x in now.items()}, tmp_path / "model.safetensors")
    again = from_pretrained(tmp_path)
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize("family", ["ViT", "DeiT"])
def test_vit_leaves_a_pooler_out(family, tmp_path):
    config = getattr(transformers, f"{family}Config")(**SIZES["square"])
    theirs = getattr(transformers, f"{family}Model")(config).eval()
    names = saved(theirs, tmp_path) and load_file(tmp_path / "model.safetensors")
    assert "pooler.dense.weight" in names
    images = images_of(theirs)
    with torch.no_grad():
        states = from_pretrained(tmp_path)(images)
        assert_close(states, theirs(images).last_hidden_state)


@pytest.fixture
def tiny():
    sizes = {"d_model": 10, "n_heads": 5, "d_ff": 7, "n_layers": 2}
    config = ViTConfig(image_size=(6, 15), patch_size=(2, 5), n_channels=3, n_labels=11, **sizes)
    return ViT(config).eval()


def written(model, folder, **changes):
    """Save a model and change its config.json."""
    model.save_pretrained(folder)
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: x for name, x in config.items() if x != "absent"}))
    return folder


def test_vit_keeps_the_names_of_its_classes(tiny, tmp_path):
    names = tuple(f"bird {i}" for i in range(11))
    folder = written(tiny, tmp_path, id2label={str(i): names[i] for i in reversed(range(11))})
    ours = from_pretrained(folder)
    assert ours.config.labels == names
    ours.save_pretrained(tmp_path / "again")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "again")
    assert theirs.id2label == dict(enumerate(names)) and theirs.label2id["bird 10"] == 10
    with pytest.raises(ValueError, match=r"n_labels must be one of \(2,\), got 3"):
        ViTConfig(n_labels=3, labels=("a", "b"))


def test_vit_reads_a_number_of_labels_without_names(tiny, tmp_path):
    counted = {"id2label": "absent", "label2id": "absent", "num_labels": 11}
    assert from_pretrained(written(tiny, tmp_path, **counted)).config.n_labels == 11


def test_vit_returns_from_a_file_as_it_was(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    again = ViT.from_pretrained(tmp_path)
    changes = {"labels": tuple(f"LABEL_{i}" for i in range(11))}
    assert again.config == dataclasses.replace(tiny.config, **changes)
    assert {n: x.shape for n, x in again.state_dict().items()} == {
        n: x.shape for n, x in tiny.state_dict().items()
    }
    assert all(torch.equal(x, again.state_dict()[n]) for n, x in tiny.state_dict().items())
    square = ViT(dataclasses.replace(tiny.config, image_size=6, patch_size=2))
    assert square.settings()["image_size"] == 6 and tiny.settings()["patch_size"] == [2, 5]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["ViTForMaskedImageModeling"]}, "ViT: architectures must be one of"),
        ({"architectures": "absent"}, "ViT: architectures must be one of"),
        ({"hidden_act": "gelu_new"}, "ViT: hidden_act must be one of .*, got 'gelu_new'"),
        ({"head_dim": 3}, r"ViT: config.json has settings .*\{'head_dim': 3\}"),
        ({"model_type": "swin"}, "model_type must be one of"),
        ({"image_size": [6, 16]}, "image_size must be a multiple of 5 above 0, got 16"),
        ({"image_size": [6, 20]}, r"wrong: vit.embeddings.position_embeddings \(1, 10, 10\)"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_vit_refuses_what_it_does_not_know(tiny, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        from_pretrained(written(tiny, tmp_path, **changes))


@pytest.mark.parametrize(
    "name, value",
    [("encoder_stride", 8), ("pooler_output_size", 3), ("pooler_act", "gelu"),
     ("hidden_dropout_prob", 0.5)],
)  # fmt: skip
def test_vit_knows_settings_without_effect(tiny, tmp_path, name, value):
    images = torch.randn(2, 3, 6, 15)
    with torch.no_grad():
        again = from_pretrained(written(tiny, tmp_path, **{name: value}))(images)
        assert torch.equal(again, tiny(images))


# Properties


def test_vit_treats_each_image_alone(tiny):
    images = torch.randn(5, 3, 6, 15, dtype=torch.float64)
    tiny.double()
    with torch.no_grad():
        together = tiny(images)
        assert_close(together, torch.cat([tiny(image[None]) for image in images]))
        assert tiny(images[:0]).shape == (0, 11)


def test_vit_reads_patches_row_by_row(tiny):
    images, seen = torch.zeros(1, 3, 6, 15), []
    images[:, :, 2:4, 10:15] = 1  # row 1, column 2 of 3 x 3 patches
    hook = tiny.encoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tiny(images), tiny(torch.zeros_like(images))
    hook.remove()
    assert (seen[0] != seen[1]).any(dim=-1)[0].nonzero().flatten().tolist() == [1 + 3 * 1 + 2]


def test_vit_knows_the_order_of_patches_by_their_positions_alone(tiny):
    tiny.double()
    images = torch.randn(2, 3, 6, 15, dtype=torch.float64)
    patches = images.unflatten(3, (3, 5)).unflatten(2, (3, 2)).transpose(3, 4).flatten(2, 3)
    order = torch.randperm(9)
    moved = patches[:, :, order].unflatten(2, (3, 3)).transpose(3, 4).flatten(4).flatten(2, 3)
    with torch.no_grad():
        logits, changed = tiny(images), tiny(moved)
        tiny.positions[:, 1:] = tiny.positions[:, 1:][:, order]
        along = tiny(moved)
        tiny.positions.zero_()
        assert_close(tiny(moved), tiny(images))
    assert (logits - changed).abs().max() > 1e-4
    assert_close(along, logits)


def test_vit_averages_the_heads_of_both_class_tokens():
    sizes = {"image_size": 4, "patch_size": 2, "d_model": 6, "n_heads": 2, "d_ff": 5, "n_layers": 1}
    both = ViT(ViTConfig(**sizes, n_labels=7, distillation="head"))
    one = ViT(ViTConfig(**sizes, n_labels=7, distillation="token"))
    none = ViT(ViTConfig(**sizes, n_labels=None, distillation="token"))
    for other in (one, none):
        other.load_state_dict(both.state_dict(), strict=False)
    images = torch.randn(3, 3, 4, 4)
    states = none(images)
    assert states.shape == (3, 6, 6) and torch.equal(states, both.encode(images))
    first, second = both.head(states[:, 0]), both.distillation_head(states[:, 1])
    assert_close(one(images), first)
    assert_close(both(images), (first + second) / 2)


def test_vit_is_recorded_and_computed_by_onednn(tiny):
    images = torch.randn(2, 3, 6, 15)
    with torch.no_grad():
        expected = tiny(images)
        with recording(tiny) as seen:
            assert_close(tiny(images), expected)
        assert sorted(seen) == ["encoder.0.attention", "encoder.1.attention"]
        for weights in seen.values():
            assert weights.shape == (2, 5, 10, 10)
            assert_close(weights.sum(dim=-1), torch.ones(2, 5, 10))
        assert_close(use_onednn(copy.deepcopy(tiny))(images), expected)
        assert_close(pack_for_decoding(tiny)(images), expected)


def test_vit_gives_every_parameter_a_gradient_and_drops_in_training_alone():
    sizes = {"image_size": 4, "patch_size": 2, "d_model": 6, "n_heads": 2, "d_ff": 5, "n_layers": 2}
    model = ViT(ViTConfig(**sizes, n_labels=3, distillation="head", dropout=0.5))
    images = torch.randn(2, 3, 4, 4)
    (model(images) ** 2).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("place", ["dropout", "encoder"])
def test_vit_drops_embeddings_and_what_sublayers_return(place):
    sizes = {"image_size": 4, "patch_size": 2, "d_model": 6, "n_heads": 2, "d_ff": 5, "n_layers": 1}
    model = ViT(ViTConfig(**sizes, dropout=0.5))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.startswith(place):
            module.p = 0.0
    images = torch.randn(2, 3, 4, 4)
    assert not torch.equal(model(images), model(images))


def test_vit_drops_attention_weights_in_training():
    sizes = {"image_size": 4, "patch_size": 2, "d_model": 6, "n_heads": 2, "d_ff": 5, "n_layers": 1}
    model = ViT(ViTConfig(**sizes, attention_dropout=0.5))
    images = torch.randn(2, 3, 4, 4)
    assert not torch.equal(model(images), model(images))


def test_vit_starts_small_and_about_indifferent():
    model = ViT(ViTConfig(image_size=32, d_model=192, n_heads=3, d_ff=768, n_layers=2))
    for table in (model.class_token, model.positions):
        assert 0.01 < table.std() < 0.03
    with torch.no_grad():
        loss = label_loss(model, LabeledBatch(torch.randn(5, 3, 32, 32), torch.arange(5))) / 5
    assert 6.5 < loss < 8.0  # ln 1000 = 6.9, and the spread of random logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_vit_computes_in_half_precision(tiny, dtype):
    images = torch.randn(2, 3, 6, 15)
    with torch.no_grad():
        expected = tiny(images)
        found = tiny.to(dtype)(images.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < 0.05  # eight bits of about one


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "images, message",
    [
        (
            torch.zeros(1, 3, 15, 6),
            r"ViT: images must be \(6, 15\) pixels \(height, width\), .* got \(15, 6\); resize",
        ),
        (torch.zeros(1, 3, 6, 17), r"ViT: images must be \(6, 15\) pixels .* got \(6, 17\)"),
        (
            torch.zeros(1, 1, 6, 15),
            r"shape \(B, C, H, W\) with C = 3, got \(1, 1, 6, 15\)",
        ),
        (
            torch.zeros(3, 6, 15),
            r"images must have shape .*, got \(3, 6, 15\)",
        ),
        (torch.zeros(1, 3, 6, 15, dtype=torch.uint8), "images must be torch.float32 on cpu"),
    ],
    ids=["turned", "wide", "gray", "alone", "bytes"],
)
def test_vit_refuses_other_images(tiny, images, message):
    with pytest.raises(ValueError, match=message):
        tiny(images)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 225}, "ViTConfig: image_size must be a multiple of 16 above 0, got 225"),
        ({"image_size": (32, 0)}, "image_size must be a multiple of 16 above 0, got 0"),
        ({"patch_size": 0}, "ViTConfig: patch_size must be an integer at least 1, got 0"),
        ({"n_channels": 0}, "n_channels must be an integer at least 1, got 0"),
        ({"n_layers": 0}, "n_layers must be an integer at least 1, got 0"),
        ({"n_labels": 0}, "n_labels must be an integer at least 1, got 0"),
        ({"n_labels": None, "distillation": "head"}, "n_labels must be .*, got None"),
        ({"distillation": "both"}, "distillation must be one of .*, got 'both'"),
        ({"activation": "swiglu"}, "activation must be one of .*, got 'swiglu'"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"norm_eps": 0.0}, "norm_eps must be a number above 0, got 0.0"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_config_refuses_impossible_values(changes, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**changes)


def test_config_counts_patches():
    config = ViTConfig()
    assert (config.image, config.patch, config.grid) == ((224, 224), (16, 16), (14, 14))
    assert ViTConfig(image_size=(32, 64), patch_size=(8, 16)).grid == (4, 4)
    with torch.device("meta"):
        n = sum(p.numel() for p in ViT(config).parameters())
    assert n == 86_567_656  # Dosovitskiy et al. (2021), Table 1: 86 million


def test_label_loss_of_images_is_a_sum_of_cross_entropies(tiny):
    batch = LabeledBatch(torch.randn(5, 3, 6, 15), torch.tensor([0, 10, 3, 0, 7]))
    logits = tiny(batch.inputs)
    for smoothing in (0.0, 0.1):
        options = {"reduction": "sum", "label_smoothing": smoothing}
        expected = torch.nn.functional.cross_entropy(logits, batch.labels, **options)
        assert_close(label_loss(tiny, batch, smoothing), expected)


def stripes(n, seed):
    """Images of a bright row (class 0) or column (class 1), in noise."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(n, 1, 6, 6, generator=generator)
    labels = torch.randint(2, (n,), generator=generator)
    for image, label, at in zip(images[:, 0], labels, torch.randint(6, (n,), generator=generator),
                                strict=True):  # fmt: skip
        (image if label == 0 else image.T)[at] += 1
    return images, labels


@pytest.mark.slow
def test_vit_learns_with_the_trainer_and_resumes(tmp_path):
    sizes = {"d_model": 16, "n_heads": 2, "d_ff": 32, "n_layers": 2}
    config = ViTConfig(image_size=6, patch_size=2, n_channels=1, n_labels=2, **sizes)
    plan = TrainingConfig(n_steps=120, learning_rate=1e-2, warmup=10, precision="fp32")

    def trainer(folder):
        torch.manual_seed(0)
        data = LabeledBatches(*stripes(400, seed=0), batch_size=32)
        return Trainer(ViT(config), data, plan, loss=label_loss, folder=folder)

    once = trainer(tmp_path / "once").fit()
    trainer(tmp_path / "twice").fit(until=50)
    twice = trainer(tmp_path / "twice")
    assert twice.resume() and twice.step == 50
    twice.fit()
    for mine, other in zip(once.bare.parameters(), twice.bare.parameters(), strict=True):
        assert torch.equal(mine, other)
    images, labels = stripes(200, seed=1)
    with torch.no_grad():
        right = (once.bare.eval().cpu()(images).argmax(dim=-1) == labels).double().mean()
    assert right > 0.9
