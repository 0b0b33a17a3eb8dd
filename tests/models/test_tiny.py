from multicoco.models.backbone import load_backbone
from multicoco.models.tiny import build_tiny_internvl, build_tiny_text


def test_tiny_model_is_the_same_for_a_seed(tiny, tmp_path):
    again = build_tiny_internvl(["Which tile is red?"] * 5, tmp_path / "again", hidden_size=32, text_layers=1)
    assert (again / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_text() == (tiny / "tokenizer.json").read_text()


def test_tiny_text_model_is_one_for_text_alone(tmp_path):
    folders = [
        build_tiny_text(["Tom is a wumpus."] * 5, tmp_path / name, hidden_size=32, text_layers=1) for name in "ab"
    ]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    backbone = load_backbone(str(folders[0]))
    assert backbone.model.config.model_type == "qwen2"
    assert "<IMG_CONTEXT>" not in backbone.tokenizer.get_vocab()
    assert backbone.tokenizer.decode(backbone.tokenizer.encode("Tom is a wumpus.")) == "Tom is a wumpus."
