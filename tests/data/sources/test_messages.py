import base64

import pytest

from multicoco.data.example import Turn
from multicoco.errors import UserError


def llava(asked="<image>\nWhat is it?", said="A cat.", **fields) -> dict:
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    return {"id": "7", "image": "a.png", "conversations": turns} | fields


def openai(asked, said, **fields) -> dict:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant"} | said]} | fields


def test_llava(read, tmp_path):
    (example,) = read(llava())
    assert (example.id, example.question, example.answer, example.steps) == ("7", "What is it?", "A cat.", ())
    assert example.images == (tmp_path / "a.png",) and example.image_places == ()
    (example,) = read(llava("Is it <image> or <image>?", image=["b.png", "a.png"]))
    assert example.images == (tmp_path / "b.png", tmp_path / "a.png")
    assert (example.question, example.image_places) == ("Is it  or ?", (6, 10))
    assert read(llava("What?", image=None))[0].images == ()


def test_openai(read, tmp_path):
    picture = (tmp_path / "b.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    parts = [
        {"type": "text", "text": "Left:"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "right:"},
        {"type": "text", "text": " \n"},
        {"type": "image", "image": "a.png", "text": None},
        {"type": "text", "text": "which?"},
    ]
    (example,) = read(openai(parts, {"content": "Left."}))
    assert example.images == (picture, tmp_path / "a.png")
    assert (example.question, example.image_places) == ("Left:\nright:\nwhich?", (6, 13))
    beside = [{"type": "image"}, {"type": "input_text", "text": "What?"}]
    (example,) = read(openai(beside, {"content": [{"type": "output_text", "text": "A cat."}]}, images=["b.png"]))
    assert (example.question, example.answer, example.images) == ("What?", "A cat.", (tmp_path / "b.png",))


def test_messages_of_a_table_have_all_keys(read):
    nothing = dict.fromkeys(("role", "content", "from", "value", "reasoning", "tool_calls"))
    turns = [nothing | turn for turn in llava("What?", image=None)["conversations"]]
    assert read({"conversations": turns, "messages": None, "images": []})[0].answer == "A cat."


def test_a_system_message_stands_in_front(read):
    record = openai("Who?", {"content": "Me."})
    record["messages"].insert(0, {"role": "system", "content": "Be brief."})
    assert read(record)[0].question == "Be brief.\n\nWho?"
    assert read(llava(system="Be brief.", image="a.png"))[0].question == "Be brief.\n\n\nWhat is it?"


TAGS = "<SUMMARY> I look. </SUMMARY>\n<REASONING> It has fur. It purrs. </REASONING>\n"


@pytest.mark.parametrize(
    ("said", "fields", "steps_from", "steps"),
    [
        ({"content": "<think>\nI look. It has fur.\n</think>\n\nA cat."}, {}, "sentences", ("I look.", "It has fur.")),
        ({"content": "<think>I look.\nIt has fur.</think>A cat."}, {}, "lines", ("I look.", "It has fur.")),
        ({"content": "I look.\nIt has fur.\n</think>\n\nA cat."}, {}, "lines", ("I look.", "It has fur.")),
        ({"content": "<think>Hm.</think><answer>A cat.</answer>"}, {}, "sentences", ("Hm.",)),
        ({"content": "<think>\n\n</think>A cat."}, {}, "sentences", ()),
        ({"content": f"{TAGS}<CONCLUSION> A cat. </CONCLUSION>"}, {}, "tag", ("I look.", "It has fur. It purrs.")),
        ({"content": "A cat.", "reasoning": "1. I look.\n2. It has fur."}, {}, "list", ("I look.", "It has fur.")),
        ({"content": "A cat.", "reasoning_content": "I look."}, {}, "sentences", ("I look.",)),
        (
            {"content": [{"type": "reasoning", "text": "I look."}, {"type": "text", "text": "A cat."}]},
            {},
            "sentences",
            ("I look.",),
        ),
        (
            {"content": [{"type": "thinking", "thinking": "I look."}, {"type": "text", "text": "A cat."}]},
            {},
            "sentences",
            ("I look.",),
        ),
        ({"content": "A cat."}, {"steps": ["I look.", "It has fur."]}, "sentences", ("I look.", "It has fur.")),
        ({"content": "A cat."}, {"steps": "I look. It has fur."}, "sentences", ("I look.", "It has fur.")),
        ({"content": "A cat."}, {}, "tag", ()),
    ],
)
def test_where_the_reasoning_is(read, said, fields, steps_from, steps):
    (example,) = read(openai("What?", said, **fields), steps_from=steps_from)
    assert (example.answer, example.steps) == ("A cat.", steps)


@pytest.mark.parametrize("key", ["rationale", "solution", "reasoning", "thinking"])
def test_reasoning_beside_the_conversation_is_not_dropped(read, key):
    record = openai("What?", {"content": "A cat."}, **{key: "I look. It has fur."})
    with pytest.raises(UserError, match=f"'{key}' looks like the reasoning.*steps: {key}}} and source: messages"):
        read(record)
    (example,) = read(record, columns={"steps": key}, source="messages")
    assert example.steps == ("I look.", "It has fur.")
    both = openai("What?", {"content": "<think>I see.</think>A cat."}, **{key: "I look."})
    assert read(both)[0].steps == ("I see.",)


def test_a_question_without_an_answer(read):
    (example,) = read({"messages": [{"role": "user", "content": "Who?"}]})
    assert (example.question, example.answer) == ("Who?", None)


LLAVA_TURNS = [
    ("human", "<image>\nWhat are the colors of the bus in the image?"),
    ("gpt", "The bus in the image is white and red."),
    ("human", "What feature can be seen on the back of the bus?"),
    ("gpt", "The back of the bus features an advertisement."),
    ("human", "Is the bus driving down the street or pulled off to the side?"),
    ("gpt", "<think>It is near people. It drives.</think>The bus is driving down the street."),
]  # of liuhaotian/LLaVA-Instruct-150K, but for the reasoning


def said(*turns: tuple[str, str]) -> list[dict]:
    return [{"from": name, "value": value} for name, value in turns]


def test_of_several_turns_the_last_answer_is_the_examples(read, tmp_path):
    (example,) = read(llava(conversations=said(*LLAVA_TURNS)))
    assert (example.question, example.answer) == (LLAVA_TURNS[4][1], "The bus is driving down the street.")
    assert example.steps == ("It is near people.", "It drives.") and example.images == (tmp_path / "a.png",)
    first = Turn("What are the colors of the bus in the image?", LLAVA_TURNS[1][1], (0,))
    assert example.earlier == (first, Turn(LLAVA_TURNS[2][1], LLAVA_TURNS[3][1])) and example.image_places == ()
    texts = [turn[1].removeprefix("<image>\n") for turn in LLAVA_TURNS[:5]]
    assert example.conversation == "\n".join(texts)


def test_what_was_answered_before_has_no_reasoning(read):
    before = {"role": "assistant", "content": "<think>Hm.</think>\n\nA cat.", "reasoning": "I look."}
    (example,) = read({"messages": [USER, before, {"role": "user", "content": "So?"}, GPT]})
    assert example.earlier == (Turn("Who?", "A cat."),) and example.steps == ()


def test_images_of_several_turns_are_given_in_their_order(read, tmp_path):
    turns = said(("human", "<image>\nThis?"), ("gpt", "A cat."), ("human", "And <image> or <image>?"), ("gpt", "Dogs."))
    (example,) = read(llava(conversations=turns, image=["b.png", "a.png", "b.png"]))
    assert example.images == (tmp_path / "b.png", tmp_path / "a.png", tmp_path / "b.png")
    assert example.earlier[0].image_places == (0,) and example.image_places == (4, 8)
    parts = [[{"type": "image", "image": name}, {"type": "text", "text": "This?"}] for name in ("a.png", "b.png")]
    messages = [{"role": "user", "content": parts[0]}, GPT, {"role": "user", "content": parts[1]}, GPT]
    (example,) = read({"messages": messages})
    assert example.images == (tmp_path / "a.png", tmp_path / "b.png")
    assert (example.earlier, example.image_places) == ((Turn("This?", "Me.", (0,)),), (0,))


def test_a_conversation_that_ends_with_a_question_is_not_answered(read):
    (example,) = read({"messages": [USER, GPT, {"role": "user", "content": "So?"}]})
    assert (example.earlier, example.question, example.answer) == ((Turn("Who?", "Me."),), "So?", None)


def test_messages_of_one_side_in_a_row_are_one(read):
    system = {"role": "system", "content": "Be brief."}
    (example,) = read({"messages": [system, USER, USER, GPT, GPT, system, USER, GPT]})
    assert example.earlier == (Turn("Be brief.\n\nWho?\n\nWho?", "Me.\n\nMe."),)
    assert (example.question, example.answer) == ("Be brief.\n\nWho?", "Me.")


USER, GPT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [GPT, USER]}, "begins with a message of assistant"),
        ({"messages": []}, "has no message of user"),
        ({"messages": [{"role": "system", "content": "Be brief."}, GPT]}, "has no message of user"),
        ({"messages": [USER, GPT, {"role": "system", "content": "Be brief."}]}, "system with no question behind it"),
        ({"messages": [USER, GPT | {"content": "<think>so"}, USER, GPT]}, "<think>"),
        (llava(conversations=said(("human", "<image>"), ("gpt", "A cat."), ("human", "Why?"))), "without <image>"),
        (llava(conversations=said(("human", "a <image>"), ("gpt", "b"), ("human", "<image> c"))), "2 marks.*1 images"),
        ({"messages": [USER, "Me."]}, r"'messages\[1\]' must be a message"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "is of 'tool'"),
        ({"messages": [USER, GPT | {"tool_calls": [{}]}]}, "calls tools"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"content of 'messages\[1\]'"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "'answer'"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}, GPT]}, "type 'video'"),
        ({"messages": [USER, GPT], "conversations": [USER, GPT]}, "either"),
        ({"messages": [USER, {"role": "assistant", "content": "<think>so A cat."}]}, "<think>"),
        ({"messages": [USER, {"role": "assistant", "content": "Well. <think>so</think> A cat."}]}, "stands behind it"),
        ({"messages": [USER, {"role": "assistant", "content": "so</think></think> A cat."}]}, "or stands twice"),
        ({"messages": [USER, GPT | {"reasoning": "So."}], "steps": ["So."]}, "both given"),
        ({"messages": [USER, GPT], "passage": "x"}, "'passage' looks like"),
        ({"messages": [USER | {"reasoning": "Hm."}, GPT]}, "reasoning stands in a message of user"),
        (llava("What is it?\n<image>", image=None), "record has no image"),
        (llava("<image> or <image>?"), "2 marks <image> for 1 images"),
        (llava(image="http://example.org/a.png"), "is an address"),
        (llava(image="no.png"), "no image 'no.png'"),
        (openai([{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}], GPT, image="b.png"), "beside"),
        (openai([{"type": "image_url", "image_url": {"url": "https://e.org/a.png"}}], GPT), "is an address"),
        (openai("Draw.", {"content": [{"type": "image", "image": "a.png"}]}), "the answer holds an image"),
    ],
)
def test_bad_records(read, record, reason):
    with pytest.raises(UserError, match=rf"1 bad of 2 records\n  record 1.*{reason}"):
        read({"messages": [USER, GPT]}, record)
