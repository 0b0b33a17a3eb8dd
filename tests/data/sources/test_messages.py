import base64

import pytest

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


USER, GPT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [USER, GPT, USER, GPT]}, "found 2 of user and 2 of assistant"),
        ({"messages": [GPT, USER]}, "begins with a message of assistant"),
        ({"messages": []}, "found 0 of user"),
        ({"messages": [USER, "Me."]}, r"'messages\[1\]' must be a message"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "is of 'tool'"),
        ({"messages": [USER, GPT | {"tool_calls": [{}]}]}, "calls tools"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"content of 'messages\[1\]'"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "'answer'"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}, GPT]}, "type 'video'"),
        ({"messages": [USER, GPT], "conversations": [USER, GPT]}, "either"),
        ({"messages": [USER, {"role": "assistant", "content": "<think>so A cat."}]}, "<think>"),
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
