from multicoco.models.tiny import build_tiny_internvl


def test_tiny_model_is_the_same_for_a_seed(tiny, tmp_path):
    again = build_tiny_internvl(["Which tile is red?"] * 5, tmp_path / "again", hidden_size=32, text_layers=1)
    assert (again / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_text() == (tiny / "tokenizer.json").read_text()
