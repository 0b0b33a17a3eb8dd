import json
import shutil

import pytest
import torch
from reference import qwen2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from multicoco.errors import UserError
from multicoco.models.backbone import load_backbone
from multicoco.models.checks import check_template, check_tokenizer, position_limit
from multicoco.models.families import family_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


class Burglar:
    def __reduce__(self):
        return print, ("burgled",)


def as_pickle(folder):
    """The same weights in the older format."""
    torch.save(qwen2().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def as_shards(folder):
    load_backbone(str(folder)).model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    return sorted(folder.glob("model-*.safetensors"))[1]


def in_one(folder):
    return folder / "model.safetensors"


def cut(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize("form", [in_one, as_shards, as_pickle])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: POINTER, "is a Git LFS pointer.*git lfs pull"),
        (cut, "is cut or damaged"),
        (lambda whole: b"", "is empty"),
        (lambda whole: b"<html>Not found</html>" * 100, "is cut or damaged"),
    ],
)
def test_damaged_weights_are_refused_by_their_file(text_model, tmp_path, form, change, message):
    text_model(tmp_path)
    path = form(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path} {message}"):
        load_backbone(str(tmp_path))


def test_a_missing_shard_and_an_index_that_is_none_are_refused(text_model, tmp_path):
    text_model(tmp_path)
    shard = as_shards(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard} is missing, which the index"):
        load_backbone(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    for content in ("{}", "[]", '{"weight_map": 3}', "{"):
        index.write_text(content)
        with pytest.raises(UserError, match=f"{index} is no index"):
            load_backbone(str(tmp_path))


def test_code_in_weights_is_not_run(text_model, tmp_path, capsys):
    text_model(tmp_path)
    torch.save({"x": Burglar()}, as_pickle(tmp_path))
    with pytest.raises(UserError, match=r"pytorch_model\.bin .*holds code"):
        load_backbone(str(tmp_path))
    assert "burgled" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_other_files_that_are_pointers_are_refused(text_model, tmp_path, name):
    text_model(tmp_path)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma", "llama", "opt"])
@pytest.mark.parametrize("left", [(), ("tokenizer_config.json", "chat_template.jinja")])
def test_a_folder_without_a_tokenizer_is_refused(text_model, tmp_path, kind, left):
    text_model(tmp_path / "with")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 400}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path / kind)
    for name in left:
        shutil.copy(tmp_path / "with" / name, tmp_path / kind)
    with pytest.raises(UserError, match="tokenizer"):
        load_backbone(str(tmp_path / kind))


def test_a_tokenizer_of_few_words_is_one():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "<eos>": 1, "wumpus": 2, "is": 3, "a": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="<eos>")
    check_tokenizer(tokenizer, 5)
    with pytest.raises(UserError, match=r"'a' \(4\), which a text can hold, but the model only 4 embeddings"):
        check_tokenizer(tokenizer, 4)


def end_beyond(tokenizer):
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})


def bos_beyond(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"


def words_beyond(tokenizer):
    tokenizer.add_tokens([f"word{i}" for i in range(9)])


def no_end(tokenizer):
    tokenizer.eos_token = None


def template(text):
    return lambda tokenizer: setattr(tokenizer, "chat_template", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (end_beyond, r"'<\|end\|>' \(\d+\), which every answer ends with, but the model only \d+ embeddings"),
        (bos_beyond, r"'<\|begin\|>' \(\d+\), which every prompt holds"),
        (words_beyond, r"'word0' .* and 4 more, which a text can hold"),
        (no_end, "no end-of-text token"),
        (template("{{ messages[0].content }"), "chat template fails on a user's turn"),
        (template("{{ raise_exception('system first') }}"), "chat template fails .*system first"),
        (template("{{ messages[0]['content'][0]['text'] }}"), "chat template (fails|shows)"),
        (template("<|im_start|>user<|im_end|>"), "shows a user's text 0 times"),
        (template("{{ messages[0].content }}{{ messages[0].content }}"), "shows a user's text 2 times"),
    ],
)
def test_what_tokenizer_template_and_model_disagree_on_is_named(text_model, tmp_path, change, message):
    path = text_model(tmp_path, vocab_size=None, change_tokenizer=change)
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(path)
    assert path in str(caught.value)


def test_a_template_in_words_that_the_tokenizer_does_not_know_is_refused():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "<eos>": 1, "red": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="<eos>")
    family = family_of(qwen2().config)
    check_template(tokenizer, family, 3)
    tokenizer.chat_template = "USER: {{ messages[0].content }}"
    with pytest.raises(UserError, match="does not know all of its chat template"):
        check_template(tokenizer, family, 3)


def test_a_vision_models_template_must_show_the_image(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "blind")
    (tmp_path / "blind" / "chat_template.jinja").write_text("{{ messages[0].content[-1].text }}")
    with pytest.raises(UserError, match="shows 0 images of 1"):
        load_backbone(str(tmp_path / "blind"))


def test_unused_special_tokens_beyond_the_embeddings_do_no_harm(text_model, tmp_path):
    path = text_model(
        tmp_path,
        vocab_size=None,
        change_tokenizer=lambda t: t.add_special_tokens({"additional_special_tokens": ["<|tool|>"]}),
    )
    assert (
        load_backbone(path).tokenizer.convert_tokens_to_ids("<|tool|>")
        >= json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    )


@pytest.mark.parametrize(
    ("kind", "options", "limit"),
    [
        ("gpt2", {"n_positions": 24}, 24),
        ("gpt_bigcode", {"n_positions": 24}, 24),
        ("gpt_neo", {"max_position_embeddings": 24, "attention_types": [[["global"], 1]], "num_layers": 1}, 24),
        ("opt", {"max_position_embeddings": 24, "ffn_dim": 16}, 24),
        ("llama", {"max_position_embeddings": 24}, None),
        ("qwen2", {"max_position_embeddings": 24}, None),
    ],
)
def test_learned_positions_end(kind, options, limit):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    tokens = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **tokens, **options})).eval()
    assert position_limit(model) == limit
    model(input_ids=torch.full((1, limit or 48), 5))
    if limit:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))
