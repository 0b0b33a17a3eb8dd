import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multicoco.data.sources.steps import rationale_steps, split_reasoning, split_sentences
from multicoco.errors import UserError

EUROPEAN = [
    ["He's 3.5 ft. tall.", "He is a child."],
    ["He is 6 ft.", "The door is higher."],
    ["Mr. Smith and Dr. J. Jones met St. Nicholas vs. the others."],
    ["The U.S. flag flies at 9 a.m. every day.", "it is windy."],
    ["People use it, e.g. cooks.", "Is it hot?", "yes it is."],
    ['The sign says "Stop."', "It is red."],
    ['The sign says "Stop!" in white (it is red.) and stands.', "so cars stop"],
    ["See example.com for version 2.0 of it"],
    ["See www.Example.Com/a.B now.", "It is open."],
    ["Dr. No is a film with Mrs. No and Prof. He.", "It is old."],
    ["The No. 1 team plays No. 2.", "It won no. 5 of them."],
    ["See Fig. 3 and Sec. 2.", "They say so."],
    ["1. Look at it.", "2. Then say it."],
    ["the man is old.", "the dog is young.", "it barks"],
    ["He lives in the U.S.", "He likes it."],
]
WITHOUT_SPACES = [
    ["这是一只猫。", "它在睡觉。", "真的吗？", "是3.5米！"],  # noqa: RUF001
    ["これは猫です。", "眠っています。"],
]
OTHER_SCRIPTS = [
    ["यह एक बिल्ली है।", "वह सो रही है।"],
    ["هل هذا قط؟", "نعم هو قط."],
    ["یہ بلی ہے۔", "وہ سو رہی ہے۔"],  # noqa: RUF001
]


@pytest.mark.parametrize("sentences", [*EUROPEAN, *OTHER_SCRIPTS])
def test_sentences(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize("sentences", WITHOUT_SPACES)
def test_sentences_of_scripts_without_spaces(sentences):
    assert split_sentences("".join(sentences)) == sentences


def test_sentences_of_several_lines():
    assert split_sentences("He is old.\nHe sits\ndown!\n\nMr.\nNo.") == ["He is old.", "He sits\ndown!", "Mr. No."]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("aBD .!?\"')(\n1。\uff1f।") | st.characters(exclude_categories=["Cs"])))
def test_sentences_hold_all_of_the_text(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


def test_steps_of_rationales():
    rationales = ["It is red. It stops.", "Another."]
    assert rationale_steps(rationales, "sentences") == ("It is red.", "It stops.")
    assert rationale_steps(rationales, "rationales") == tuple(rationales)
    assert rationale_steps([], "sentences") == ()


@pytest.mark.parametrize(
    ("steps_from", "text", "steps"),
    [
        ("sentences", "It is red. It stops.", ("It is red.", "It stops.")),
        ("rationales", " It is red. It stops.\n", ("It is red. It stops.",)),
        ("lines", "It is red. So:\n\n  it stops.\n", ("It is red. So:", "it stops.")),
        (
            "list",
            "Let us see.\n1. It is 2.5 m.\n   Very.\n2) Stop.",
            ("Let us see.", "It is 2.5 m.\n   Very.", "Stop."),
        ),
        ("list", "- a\n* b\n\u2022 c - d", ("a", "b", "c - d")),
        ("list", "Step 1: Look.\nstep 2: Say.", ("Look.", "Say.")),
        ("tag", "<step>a < b</step>\n<step n='2'>c\nd</step>", ("a < b", "c\nd")),
        ("tag", "<SUMMARY> x </SUMMARY>\n<CAPTION></CAPTION><REASONING> y. z. </REASONING>", ("x", "y. z.")),
        ("tag", "<step><b>bold</b> word</step>", ("<b>bold</b> word",)),
        *((way, "", ()) for way in ("sentences", "rationales", "lines", "list", "tag")),
    ],
)
def test_steps_of_a_written_reasoning(steps_from, text, steps):
    assert split_reasoning(text, steps_from) == steps
    assert rationale_steps([text, "Another."], steps_from) == (
        (text, "Another.") if steps_from == "rationales" else steps
    )


@pytest.mark.parametrize(
    ("steps_from", "text", "reason"),
    [
        ("list", "It is red. It is 3. It stops.", "has no items"),
        ("tag", "<step>a</step> and b", "'and b'"),
        ("tag", "<step>a</stop>", "in no tag"),
        ("tag", "It is red.", "'It is red.'"),
    ],
)
def test_reasoning_of_another_form_is_refused(steps_from, text, reason):
    with pytest.raises(UserError, match=reason):
        split_reasoning(text, steps_from)
