import pytest
from reference import qwen2

from multicoco.models.tiny import TINY, build_tiny_internvl, build_tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The directory of a tiny InternVL; not to be changed."""
    return build_tiny_internvl(
        ["Which tile is red?"] * 5, tmp_path_factory.mktemp("tiny"), hidden_size=32, text_layers=1
    )


@pytest.fixture(scope="session")
def tiny_of(tiny, tmp_path_factory):
    """The directory of a tiny model of a family; not to be changed."""
    made = {"internvl": tiny}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = TINY[name](["Which tile is red?"] * 5, folder, hidden_size=32, text_layers=1)
        return made[name]

    return of


@pytest.fixture
def text_model():
    """Writes the directory of a text-only model, by default one whose tokenizer is smaller than its vocabulary."""

    def write(path, tied=False, vocab_size=400, change_tokenizer=lambda tokenizer: None):
        tokenizer = build_tokenizer(["some text"] * 5, vocab_size=300)
        config = qwen2().config
        config.vocab_size, config.tie_word_embeddings = vocab_size or len(tokenizer), tied
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        type(qwen2())(config).save_pretrained(path)
        change_tokenizer(tokenizer)
        tokenizer.save_pretrained(path)
        return str(path)

    return write
