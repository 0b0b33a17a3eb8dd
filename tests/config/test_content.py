import pytest

from multicoco.config import load_config


@pytest.fixture
def raw(write):
    """Writes the shortest run config and more, in bytes of one's own."""

    def write_raw(more: str = "", change=str.encode):
        path = write(more)
        path.write_bytes(change(path.read_text(encoding="utf-8")))
        return path

    return write_raw


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: f"---\n{text}...\n".encode(),
        lambda text: f"%YAML 1.2\n---\n{text}".encode(),
    ],
    ids=["BOM", "CRLF", "UTF-16", "document", "directive"],
)
def test_what_editors_write_is_read(raw, change):
    assert load_config(raw("project: é\n", change)).project == "é"


@pytest.mark.parametrize(
    ("more", "change", "expected"),
    [
        ("project: é\n", lambda text: text.encode("latin1"), "line 5 is no UTF-8"),
        ("", lambda text: text.encode("utf-16")[2:], "unacceptable character"),
        ("generation:\n\ttop_p: 1\n", str.encode, "in line 6: a tab"),
        ("---\nseed: 1\n", str.encode, "in line 5: a second document"),
        ("coconut: &a {b: *a}\n", str.encode, "contains itself"),
        ("wandb: {tags: &t [*t]}\n", str.encode, "contains itself"),
        ("generation: {<<: 3}\n", str.encode, ":5: << takes a mapping"),
        ("? [a]\n: 1\n", str.encode, "a key must be text"),
        ("1: 2\n", str.encode, "1 (.*:5): unknown key"),
        ("generation: {on: 2}\n", str.encode, "generation.on (.*:5): unknown key"),
        ("seed: !!int x\n", str.encode, "in line 5: a value is not what its tag says"),
        ("seed: !!int\n", str.encode, "in line 5: a value is not what its tag says"),
        ("bf16: !!bool x\n", str.encode, "in line 5: a value is not what its tag says"),
        ("seed: !!timestamp x\n", str.encode, "in line 5: a value is not what its tag says"),
        ("seed: !!python/object/apply:os.system [ls]\n", str.encode, "not valid YAML in line 5"),
    ],
)
def test_what_is_no_config_gets_one_message_with_its_file(raw, error, more, change, expected):
    path = raw(more, change)
    message = error(path)
    assert message.startswith(str(path)) and expected.replace(".*", str(path)) in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "missing"), ("# nothing\n", "missing"), ("- 1\n", "mapping"), ("7", "mapping"), ("a: [", "YAML")],
)
def test_no_mapping(tmp_path, error, text, expected):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert expected in error(path)


@pytest.mark.parametrize("name", ["nothing.yaml", ".", "a\0b"])
def test_no_file(tmp_path, monkeypatch, error, name):
    monkeypatch.chdir(tmp_path)
    assert name in error(name)


class TestDottedKeys:
    def test_are_keys_of_a_section(self, write):
        config = load_config(write("coconut.c_thought: 2\ncoconut: {epochs_per_stage: 3}\nwandb.tags: [1]\n"))
        assert (config.coconut.c_thought, config.coconut.epochs_per_stage, config.wandb.tags) == (2, 3, ["1"])

    def test_win_over_the_parents_section(self, write):
        write({"coconut": {"c_thought": 2, "max_latent_stage": 4}}, "base.yaml")
        coconut = load_config(write("coconut.c_thought: 3\n")).coconut
        assert (coconut.c_thought, coconut.max_latent_stage) == (3, 4)

    def test_are_named_as_they_are_written(self, write, error):
        message = error(write("coconut.c_thougt: 2\ncoconut.epochs_per_stage: x\n"))
        assert "coconut.c_thougt (" in message and ":5): unknown key, did you mean coconut.c_thought?" in message
        assert "coconut.epochs_per_stage (" in message and ":6): must be" in message


@pytest.mark.parametrize(
    ("more", "key", "line"),
    [
        ("seed: 1\nseed: 1\n", "seed", 6),
        ("generation:\n  top_p: 1\n  top_p: 1\n", "generation.top_p", 7),
        ("coconut: {c_thought: 2}\ncoconut: {enabled: true}\n", "coconut", 6),
        ("coconut.c_thought: 2\ncoconut.c_thought: 2\n", "coconut.c_thought", 6),
        ("coconut.c_thought: 2\ncoconut: {c_thought: 3}\n", "coconut.c_thought", 6),
        ("coconut: {c_thought: 3}\ncoconut.c_thought: 2\n", "coconut.c_thought", 6),
        ("coconut: 3\ncoconut.c_thought: 2\n", "coconut", 6),
        ("coconut.c_thought: 2\ncoconut: 3\n", "coconut", 6),
    ],
)
def test_a_key_stands_once(write, error, more, key, line):
    path = write(more)
    assert error(path) == f"{path}:{line}: key {key!r} stands twice"


def test_a_key_stands_once_on_a_command_line_too(run, error):
    assert error(run, "generation={top_p: 1.0, top_p: 0.5}").endswith("key 'generation.top_p' stands twice")
    assert load_config(run, ["seed=1", "seed=2"]).seed == 2


class TestMergeKeys:
    def test_are_no_duplicates_and_what_stands_beside_them_wins(self, write):
        config = load_config(write("generation:\n  top_p: 0.4\n  <<: {top_p: 0.5, num_beams: 2.0}\n"))
        assert (config.generation.top_p, config.generation.num_beams) == (0.4, 2)

    def test_the_first_of_several_wins(self, write):
        config = load_config(write("generation: {<<: [{top_p: 0.3}, {top_p: 0.4, num_beams: 2}]}\n"))
        assert (config.generation.top_p, config.generation.num_beams) == (0.3, 2)

    def test_may_be_anchors(self, write):
        config = load_config(write("wandb: &w {tags: [a], group: g}\nwandb.entity: e\n"))
        assert (config.wandb.tags, config.wandb.group, config.wandb.entity) == (["a"], "g", "e")


@pytest.mark.parametrize("override", ["", "=", "name", "=x", "lr =1", " lr=1"])
def test_an_override_is_key_and_value(run, error, override):
    assert error(run, override) == f"--set {override}: write it as --set key=value"


def test_a_long_override_is_not_a_page_of_a_message(run, error):
    assert len(error(run, "seed=" + "9" * 5000)) < 1000
    assert len(error(run, "lr=" + "x" * 5000)) < 1000
