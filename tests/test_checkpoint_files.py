"""The files of a checkpoint are found where they are, and refused where they should not be."""

import json
import re
from pathlib import Path

import pytest

from transformer_lib.checkpoint_files import CONFIG, INDEX, MODEL, fetcher, read_json, tensor_files


def test_fetcher_finds_the_files_of_a_folder_alone(tmp_path):
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / MODEL).mkdir()
    for folder in (tmp_path, str(tmp_path)):
        fetch = fetcher(folder)
        assert fetch(CONFIG) == tmp_path / CONFIG
        assert fetch(INDEX) is None and fetch(MODEL) is None


@pytest.mark.parametrize("name", ["a/b/c", "a b", "./nothing/here", ""])
def test_fetcher_refuses_what_is_neither_a_folder_nor_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(ValueError, match=f"^from_pretrained: {name} is not a folder$"):
            fetcher(name)
    else:
        assert fetcher(name)(CONFIG) is None  # the folder where we are


def test_fetcher_asks_the_hub_for_the_files_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    utils = pytest.importorskip("huggingface_hub.utils")

    def download(name, file, *, revision=None):
        if file == MODEL:
            return f"{name}@{revision}/{file}"
        raise utils.LocalEntryNotFoundError("gone") if file != "b" else OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    fetch = fetcher("someone/model", revision="v1")
    assert fetch(MODEL) == Path("someone/model@v1") / MODEL
    assert fetch(INDEX) is None  # a checkpoint need not have it
    for file, why in ((CONFIG, "gone"), ("b", "no network")):
        told = f"^from_pretrained: someone/model is not a folder, and {file} of .*: {why}$"
        with pytest.raises(ValueError, match=told):
            fetch(file)


@pytest.mark.parametrize(
    "text, why", [("{", "Expecting"), ("[1]", "it holds a list, not an object"), (None, "No such")]
)
def test_read_json_names_the_file_and_what_is_wrong(tmp_path, text, why):
    if text is not None:
        (tmp_path / CONFIG).write_text(text)
    path = re.escape(str(tmp_path / CONFIG))
    with pytest.raises(ValueError, match=f"^{path} is corrupted: .*{why}"):
        read_json(tmp_path / CONFIG)
    (tmp_path / CONFIG).write_text('{"größe": 3}', encoding="utf-8")
    assert read_json(tmp_path / CONFIG) == {"größe": 3}


def index(folder, **places):
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def test_tensor_files_are_the_one_file_or_those_of_the_index_in_order(tmp_path):
    index(tmp_path, x="b", y="a", z="b")
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    assert tensor_files("it", fetcher(tmp_path)) == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / MODEL).touch()
    assert tensor_files("it", fetcher(tmp_path)) == [tmp_path / MODEL]


def test_tensor_files_refuse_what_is_missing_or_elsewhere(tmp_path):
    fetch = fetcher(tmp_path)
    with pytest.raises(ValueError, match="^it has no model.safetensors. .* a pickle, which may"):
        tensor_files("it", fetch)
    index(tmp_path, x="b", y="a", z="c")
    (tmp_path / "b").touch()
    with pytest.raises(ValueError, match="^it is incomplete: a, c not found$"):
        tensor_files("it", fetch)
    index(tmp_path, x="b", y="../b", z="/b")
    with pytest.raises(ValueError, match=r"must name files beside it, got \['../b', '/b'\]$"):
        tensor_files("it", fetch)
    index(tmp_path)
    with pytest.raises(ValueError, match=r"index.json is corrupted: .*, got \[\]$"):
        tensor_files("it", fetch)
