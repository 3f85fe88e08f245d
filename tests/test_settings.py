"""Every setting is used, known not to matter, or refused; one table reads and writes."""

from dataclasses import dataclass

import pytest

from transformer_lib.settings import Settings, to_settings


def test_settings_refuse_what_was_not_read_and_may_matter():
    known = {"hidden_size": 3, "rope_scaling": None, "pruned_heads": {}, "bad": []}
    settings = Settings(known | {"window": 5, "soft_cap": 0, "x": False}, "GPT")
    assert settings.get("hidden_size") == 3 and settings.get("depth", 7) == 7
    with pytest.raises(ValueError) as caught:
        settings.refuse_unread(ignore=("soft_cap",))
    assert str(caught.value) == (
        "GPT: config.json has settings that this class does not know: {'window': 5, 'x': False}; "
        "if they do not change the result, pass ignore=('window', 'x')"
    )
    settings.refuse_unread(ignore=("window", "soft_cap", "x"))


def test_settings_give_an_explicit_null_and_not_the_default():
    assert Settings({"window": None}).get("window", 5) is None


def test_settings_name_what_must_be_one_of_some_values():
    settings = Settings({"hidden_act": "x"}, "GPT")
    with pytest.raises(ValueError, match=r"^GPT: hidden_act must be one of \('relu',\), got 'x'$"):
        settings.one_of("hidden_act", ("relu",), "relu")
    settings.refuse_unread()
    assert Settings({}).one_of("hidden_act", ("relu", "gelu"), "gelu") == "gelu"


def test_settings_read_the_fields_of_a_config_with_its_defaults():
    @dataclass
    class Config:
        size: int = 3
        depth: int = 5
        other: int = 7

    settings = Settings({"hidden_size": 11, "other": 13}, "GPT")
    names = {"size": "hidden_size", "depth": "num_layers"}
    assert settings.fields(names, Config) == {"size": 11, "depth": 5}
    with pytest.raises(ValueError, match="does not know: {'other': 13}"):
        settings.refuse_unread()
    with pytest.raises(ValueError, match=r"^GPT: other must be one of \(5,\), got 13$"):
        settings.only({"missing": True, "other": 5})
    settings.only({"other": 13})
    settings.refuse_unread()


@pytest.mark.parametrize(
    "name",
    "pad_token_id eos_token_id resid_pdrop attention_dropout hidden_dropout_prob use_cache "
    "classifier_dropout initializer_range torch_dtype dtype transformers_version do_sample top_p "
    "max_length id2label label2id task_specific_params repetition_penalty gradient_checkpointing "
    "output_attentions decoder_start_token_id _name_or_path architectures".split(),
)
def test_settings_know_what_has_no_effect_on_inference(name):
    Settings({name: 1}).refuse_unread()


@pytest.mark.parametrize(
    "name",
    "scale_attn_weights sliding_window tie_word_embeddings quantization_config auto_map "
    "hidden_size max_position_embeddings is_decoder layer_types use_sliding_window".split(),
)
def test_settings_take_nothing_else_for_being_without_effect(name):
    with pytest.raises(ValueError, match=name):
        Settings({name: 1}).refuse_unread()


@dataclass
class Translated:
    size: int = 3
    act: str = "gelu_tanh"
    tied: bool = True


NAMES = {
    "size": "hidden_size", "tied": "tie_embeddings",
    "act": ("hidden_act", {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}),
}  # fmt: skip


@pytest.mark.parametrize(
    "theirs, ours",
    [(None, "gelu_tanh"), ("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_fast", "gelu_tanh")],
)
def test_settings_translate_the_values_of_a_table_both_ways(theirs, ours):
    values = {"hidden_size": [5, 7]} | ({} if theirs is None else {"hidden_act": theirs})
    settings = Settings(values, "GPT")
    found = settings.fields(NAMES, Translated)
    assert found == {"size": [5, 7], "tied": True, "act": ours}
    settings.refuse_unread()
    written = to_settings(Translated(**found), NAMES)
    first = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[ours]
    assert written == {"hidden_size": [5, 7], "tie_embeddings": True, "hidden_act": first}
    assert Settings(written).fields(NAMES, Translated) == found


def test_settings_refuse_a_value_that_a_table_does_not_translate():
    settings = Settings({"hidden_act": "tanh"}, "GPT")
    known = r"\('gelu', 'gelu_new', 'gelu_fast'\)"
    with pytest.raises(ValueError, match=f"^GPT: hidden_act must be one of {known}, got 'tanh'$"):
        settings.fields(NAMES, Translated)


def test_to_settings_writes_a_value_without_translation_as_it_is():
    assert to_settings(Translated(act="swiglu"), NAMES)["hidden_act"] == "swiglu"
