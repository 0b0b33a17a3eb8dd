from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers.models.internvl.processing_internvl import InternVLProcessor

from multicoco.data.example import Example, Turn
from multicoco.data.prompt import PromptBuilder
from multicoco.errors import UserError
from multicoco.models.families.internvl import InternVL
from multicoco.models.tiny import build_tokenizer

TOKENIZER = build_tokenizer(["What is in the box? A cat. Answer: blue\n"] * 20, vocab_size=400)
IMAGE = TOKENIZER.context_image_token_id
CONTROL = set(TOKENIZER.all_special_ids)


FAMILY = InternVL(SimpleNamespace(image_token_id=IMAGE))


def builder(**options) -> PromptBuilder:
    return PromptBuilder(TOKENIZER, images=FAMILY, **options)


def example(**fields) -> Example:
    defaults = {
        "id": "1",
        "question": "What is in the box?",
        "images": (),
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
    tokens = builder(reasoning_instruction="Think.")(example(), "reasoning", [4])
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
    tokens = builder(answer_format=answer_format)(example(), "reasoning")
    assert choices in text(tokens.prompt)
    assert text(tokens.answer) == f"Answer:{answer}<|im_end|>"


def test_vanilla_leaves_nothing_to_write_but_the_answer():
    tokens = builder(direct_instruction="Be brief.", reasoning_instruction="Think.")(example(), "answer")
    assert text(tokens.prompt).endswith("<|im_start|>assistant\nAnswer:")
    assert "Be brief." in text(tokens.prompt) and "Think." not in text(tokens.prompt)
    assert tokens.steps == [] and text(tokens.answer) == " A<|im_end|>"


def test_an_open_question_has_its_free_text_answer():
    tokens = builder()(example(choices=(), answer="a cat", answer_index=None), "reasoning")
    assert text(tokens.answer) == "Answer: a cat<|im_end|>"


def test_a_test_record_has_no_answer():
    assert builder()(example(answer=None, answer_index=None), "reasoning").answer == []


@pytest.mark.parametrize("tiles", [[1], [2], [13], [3, 1, 2]])
@pytest.mark.parametrize("image_seq_length", [4, 256])
def test_image_tokens_are_those_of_transformers_own_processor(tiles, image_seq_length):
    processor = SimpleNamespace(
        start_image_token="<img>",
        end_image_token="</img>",
        image_token="<IMG_CONTEXT>",
        image_seq_length=image_seq_length,
    )
    expected = [InternVLProcessor.replace_image_token(processor, {"num_patches": tiles}, i) for i in range(len(tiles))]
    prompt = text(builder()(example(), "reasoning", [n * image_seq_length for n in tiles]).prompt)
    assert prompt.count("<IMG_CONTEXT>") == sum(tiles) * image_seq_length
    assert "\n".join(expected) in prompt


@pytest.mark.parametrize("pieces", [["", "a", " b?"], ["One:", " two:", ""], ["Is", "", " so?"], ["x", "y", "z"]])
def test_images_stand_where_the_question_has_them(pieces):
    places = (len(pieces[0]), len(pieces[0]) + len(pieces[1]))
    asked = example(question="".join(pieces), choices=(), images=(b"1", b"2"), image_places=places)
    shown = text(builder()(asked, "reasoning", [2, 3]).prompt)
    images = ["<img>" + "<IMG_CONTEXT>" * n + "</img>" for n in (2, 3)]
    content = []
    for piece, image in zip(pieces, [*images, None], strict=True):
        content += [{"type": "text", "text": piece}] * bool(piece) + [{"type": "image"}] * (image is not None)
    expected = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    ).split("<IMG_CONTEXT>")
    assert shown == expected[0] + images[0] + expected[1] + images[1] + expected[2]


SEVERAL = example(
    question="Is it black?",
    choices=(),
    answer_index=None,
    images=(b"1", b"2", b"3"),
    image_places=(2, 12),
    earlier=(Turn("What is it?", "A cat.", (0,)), Turn("Where?", "In the box.")),
)


def placed(turns: list[dict], n_tokens: list[int]) -> str:
    """As the chat template writes them, each image in so many tokens."""
    written = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    for n in n_tokens:
        written = written.replace("<IMG_CONTEXT>", f"<img>{'<IMG_C>' * n}</img>", 1)
    return written.replace("<IMG_C>", "<IMG_CONTEXT>")


@pytest.mark.parametrize(("asked", "ending"), [("reasoning", ""), ("answer", "Answer:")])
def test_several_turns_read_as_the_chat_template_writes_them(asked, ending):
    tokens = builder(reasoning_instruction="Think.", direct_instruction="Think.")(SEVERAL, asked, [1, 2, 3])
    image = {"type": "image"}
    said = [
        [image, "What is it?"],
        ["A cat."],
        ["Where?"],
        ["In the box."],
        ["Is", image, " it black?", image, "\nThink."],
    ]
    contents = [[part if part is image else {"type": "text", "text": part} for part in parts] for parts in said]
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    assert text(tokens.prompt) == placed(turns, [1, 2, 3]) + ending
    assert text(tokens.answer) == ("" if ending else "Answer:") + " cat<|im_end|>"


# of SmolVLM, and of Gemma
PUBLISHED = {
    "parts": (
        "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
        "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
        "{% for line in message['content'] %}{{ line['text'] if line['type'] == 'text' else '<IMG_CONTEXT>' }}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "text": (
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
    ),
}


@pytest.mark.parametrize("contents", PUBLISHED)
def test_published_templates_take_several_turns(contents):
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    tokenizer.chat_template = PUBLISHED[contents]
    sees = contents == "parts"
    asked = replace(SEVERAL, images=(b"1",), image_places=()) if sees else replace(SEVERAL, images=())
    texts = [*(said for turn in SEVERAL.earlier for said in (turn.question, turn.answer)), SEVERAL.question]
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": said}] if sees else said}
        for i, said in enumerate(texts)
    ]
    if sees:
        turns[0]["content"].insert(0, {"type": "image"})
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tokens = PromptBuilder(tokenizer, images=FAMILY if sees else None)(asked, "reasoning", [1] * sees)
    assert tokenizer.decode(tokens.prompt) == expected.replace("<IMG_CONTEXT>", "<img><IMG_CONTEXT></img>")
    assert tokenizer.decode(tokens.prompt).count(tokenizer.eos_token) == 5


def test_images_without_places_are_in_front_of_the_first_of_several_turns():
    moved = replace(SEVERAL, image_places=(), earlier=tuple(replace(turn, image_places=()) for turn in SEVERAL.earlier))
    for asked, n_tokens in ((moved, [1, 2, 3]), (SEVERAL, [4])):
        shown = text(builder()(asked, "reasoning", n_tokens).prompt)
        images = "\n".join(f"<img>{'<IMG_CONTEXT>' * n}</img>" for n in n_tokens)
        assert images + "\nWhat is it?" in shown and shown.count("<img>") == len(n_tokens)


def test_of_a_template_for_one_question_several_turns_are_refused():
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    for template, reason in (
        ("{{ messages[0]['content'] }}", "shows a conversation of 5 messages 1 times, not 5 times"),
        ("{% if messages[1:] %}{{ raise_exception('one at a time') }}{% endif %}", "does not take.*: one at a time"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=reason):
            PromptBuilder(tokenizer)(SEVERAL)


def test_without_a_question_the_choices_stand_alone():
    shown = text(builder()(example(question=""), "reasoning").prompt)
    assert "user\nA. cat\nB. dog<|im_end|>" in shown


def test_images_that_are_not_those_of_the_places_stand_in_front():
    moved = example(images=(b"1", b"2"), image_places=(3, 5))
    assert builder()(moved, "reasoning", [4]).prompt == builder()(example(), "reasoning", [4]).prompt


hostile = st.text(max_size=8) | st.sampled_from(TOKENIZER.all_special_tokens)


@settings(max_examples=50)
@given(parts=st.lists(hostile, min_size=4, max_size=8))
def test_text_of_a_record_never_becomes_a_control_token(parts):
    question, choice, step, answer = "".join(parts[3:]), *parts[:3]
    plain = builder()(example(question="q", choices=("c", "d"), steps=("s",)), "reasoning", [4])
    tokens = builder(answer_format="text")(
        example(question=question, choices=(choice, "d"), steps=(step,), answer=answer), "reasoning", [4]
    )

    def control(ids):
        return [i for i in ids if i in CONTROL]

    assert control(tokens.prompt) == control(plain.prompt)
    assert control(tokens.steps[0]) == [] and control(tokens.answer) == [TOKENIZER.eos_token_id]


def test_a_tokenizer_without_chat_template_gets_the_bare_question():
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    tokenizer.chat_template = None
    tokens = PromptBuilder(tokenizer)(example(choices=()), "reasoning")
    assert tokenizer.decode(tokens.prompt) == "What is in the box?\n"
    tokens = PromptBuilder(tokenizer)(SEVERAL, "answer")
    assert tokenizer.decode(tokens.prompt) == "What is it?\nA cat.\nWhere?\nIn the box.\nIs it black?\nAnswer:"


def test_a_text_only_chat_template_gets_plain_text():
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    tokenizer.chat_template = "{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}"
    tokens = PromptBuilder(tokenizer)(example(choices=()), "reasoning")
    assert tokenizer.decode(tokens.prompt) == "[What is in the box?]"


def test_a_chat_template_that_shows_no_image_is_refused():
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    tokenizer.chat_template = "{{ messages[0]['content'][-1]['text'] }}"
    with pytest.raises(UserError, match="chat template"):
        PromptBuilder(tokenizer, images=FAMILY)(example(), "reasoning", [4])


def test_a_base_model_sees_its_beginning_of_text_once():
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=[("<s>", bos), ("<|im_end|>", eos)]
    )
    tokens = PromptBuilder(tokenizer)(example(choices=()))
    assert tokens.prompt[0] == bos and tokenizer.decode(tokens.prompt[1:]) == "What is in the box?\n"
    everything = [*tokens.prompt, *(token for step in tokens.steps for token in step), *tokens.answer]
    assert (everything.count(bos), everything.count(eos)) == (1, 1)


def test_a_template_that_writes_the_date_gets_the_runs_own():
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    clock = "{% if strftime_now is defined %}{{ strftime_now( '%d %b %Y' ) }} {{ strftime_now(\"%Y\") }}{% endif %}"
    tokenizer.chat_template = clock + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    prompt = PromptBuilder(tokenizer, date="2026-11-25")(example(choices=())).prompt
    assert tokenizer.decode(prompt) == "25 Nov 2026 2026What is in the box?"
    with pytest.raises(UserError, match="set prompt_date"):
        PromptBuilder(tokenizer)(example(choices=()))
    tokenizer.chat_template = "{% set f = '%Y' %}{{ strftime_now(f) }}{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="give strftime_now a text"):
        PromptBuilder(tokenizer, date="2026-11-25")(example(choices=()))


@pytest.mark.parametrize("template", ["no question", "{{ messages[0]['content'] }} {{ messages[0]['content'] }}"])
def test_a_template_that_loses_or_repeats_the_question_is_refused(template):
    tokenizer = build_tokenizer(["What is it?\n"] * 5, vocab_size=300)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"shows a question [02] times"):
        PromptBuilder(tokenizer)(example(choices=()))
