from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.internvl.processing_internvl import InternVLProcessor

from multicoco.data.example import Example
from multicoco.data.prompt import PromptBuilder
from multicoco.errors import UserError
from multicoco.models.tiny import build_tokenizer

TOKENIZER = build_tokenizer(["What is in the box? A cat. Answer: blue\n"] * 20, vocab_size=400)
IMAGE = TOKENIZER.context_image_token_id
CONTROL = set(TOKENIZER.all_special_ids)


def builder(**options) -> PromptBuilder:
    return PromptBuilder(TOKENIZER, **{"image_token_id": IMAGE, "image_seq_length": 4, **options})


def example(**fields) -> Example:
    defaults = {
        "id": "1",
        "question": "What is in the box?",
        "image": None,
        "choices": ("cat", "dog"),
        "steps": ("It meows.", "Cats meow."),
        "answer": "cat",
        "answer_index": 0,
        "direct_answers": (),
    }
    return Example(**(defaults | fields))


def text(ids: list[int]) -> str:
    return TOKENIZER.decode(ids)


def test_the_whole_conversation_reads_as_the_chat_template_writes_it():
    tokens = builder(reasoning_instruction="Think.")(example(), "cot", n_tiles=1)
    expected = TOKENIZER.apply_chat_template(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image"},
                    {"type": "text", "text": "What is in the box?\nA. cat\nB. dog\nThink."},
                ],
            }
        ],
        tokenize=False,
        add_generation_prompt=True,
    ).replace("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * 4 + "</img>")
    assert text(tokens.prompt) == expected
    assert [text(step) for step in tokens.steps] == ["It meows.\n", "Cats meow.\n"]
    assert text(tokens.answer) == "Answer: A<|im_end|>"


@pytest.mark.parametrize(
    ("answer_format", "choices", "answer"),
    [
        ("letter", "A. cat\nB. dog", " A"),
        ("index", "0. cat\n1. dog", " 0"),
        ("text", "The choices are cat, dog.", " cat"),
    ],
)
def test_answer_formats(answer_format, choices, answer):
    tokens = builder(answer_format=answer_format)(example(), "cot")
    assert choices in text(tokens.prompt)
    assert text(tokens.answer) == f"Answer:{answer}<|im_end|>"


def test_vanilla_leaves_nothing_to_write_but_the_answer():
    tokens = builder(direct_instruction="Be brief.", reasoning_instruction="Think.")(example(), "vanilla")
    assert text(tokens.prompt).endswith("<|im_start|>assistant\nAnswer:")
    assert "Be brief." in text(tokens.prompt) and "Think." not in text(tokens.prompt)
    assert tokens.steps == [] and text(tokens.answer) == " A<|im_end|>"


def test_coconut_and_cot_ask_the_same_way():
    build = builder(direct_instruction="Be brief.", reasoning_instruction="Think.")
    assert build(example(), "coconut") == build(example(), "cot")


def test_an_open_question_has_its_free_text_answer():
    tokens = builder()(example(choices=(), answer="a cat", answer_index=None), "cot")
    assert text(tokens.answer) == "Answer: a cat<|im_end|>"


def test_a_test_record_has_no_answer():
    assert builder()(example(answer=None, answer_index=None), "cot").answer == []


@pytest.mark.parametrize("n_tiles", [1, 2, 13])
@pytest.mark.parametrize("image_seq_length", [4, 256])
def test_image_tokens_are_those_of_transformers_own_processor(n_tiles, image_seq_length):
    processor = SimpleNamespace(
        start_image_token="<img>",
        end_image_token="</img>",
        image_token="<IMG_CONTEXT>",
        image_seq_length=image_seq_length,
    )
    expected = InternVLProcessor.replace_image_token(processor, {"num_patches": [n_tiles]}, 0)
    prompt = text(builder(image_seq_length=image_seq_length)(example(), "cot", n_tiles).prompt)
    assert prompt.count("<IMG_CONTEXT>") == n_tiles * image_seq_length
    assert expected in prompt


hostile = st.text(max_size=8) | st.sampled_from(TOKENIZER.all_special_tokens)


@settings(max_examples=50)
@given(parts=st.lists(hostile, min_size=4, max_size=8))
def test_text_of_a_record_never_becomes_a_control_token(parts):
    question, choice, step, answer = "".join(parts[3:]), *parts[:3]
    plain = builder()(example(question="q", choices=("c", "d"), steps=("s",)), "cot", n_tiles=1)
    tokens = builder(answer_format="text")(
        example(question=question, choices=(choice, "d"), steps=(step,), answer=answer), "cot", n_tiles=1
    )

    def control(ids):
        return [i for i in ids if i in CONTROL]

    assert control(tokens.prompt) == control(plain.prompt)
    assert control(tokens.steps[0]) == [] and control(tokens.answer) == [TOKENIZER.eos_token_id]


def test_a_tokenizer_without_chat_template_gets_the_bare_question():
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    tokenizer.chat_template = None
    tokens = PromptBuilder(tokenizer)(example(choices=()), "cot")
    assert tokenizer.decode(tokens.prompt) == "What is in the box?\n"


def test_a_text_only_chat_template_gets_plain_text():
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    tokenizer.chat_template = "{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}"
    tokens = PromptBuilder(tokenizer)(example(choices=()), "cot")
    assert tokenizer.decode(tokens.prompt) == "[What is in the box?]"


def test_a_chat_template_that_shows_no_image_is_refused():
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    tokenizer.chat_template = "{{ messages[0]['content'][-1]['text'] }}"
    with pytest.raises(UserError, match="chat template"):
        PromptBuilder(tokenizer, image_token_id=IMAGE, image_seq_length=4)(example(), "cot", n_tiles=1)
