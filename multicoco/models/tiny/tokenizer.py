"""The tokenizer of a tiny model: byte-level BPE trained on the given texts, with the control tokens of the real one."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from multicoco.data.prompt import ANSWER_PREFIX

_CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ 'SHOWN' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Images:
    """How images stand in a text.

    Attributes:
        tokens: by the names that the tokenizer has for them.
        shown: what the chat template writes for an image.
    """

    tokens: dict[str, str] = field(default_factory=dict)
    shown: str = ""


NO_IMAGES = Images()
INTERNVL_IMAGES = Images(
    {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "<IMG_CONTEXT>\\n",
)
IDEFICS3_IMAGES = Images(
    {
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "image_token": "<image>",
        **{f"row_{row}_col_{column}": f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)},
    },
    "<image>",
)
LLAVA_IMAGES = Images({"image_token": "<image>", "video_token": "<video>"}, "<image>\\n")
QWEN_IMAGES = Images(
    {
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    },
    "<|vision_start|><|image_pad|><|vision_end|>",
)


def build_tokenizer(
    texts: Iterable[str], vocab_size: int, images: Images = INTERNVL_IMAGES, chats: bool = True
) -> PreTrainedTokenizerBase:
    """A tokenizer that knows the texts' words.

    Args:
        texts: what it is trained on.
        vocab_size: at most so many tokens.
        images: the tokens that stand for images.
        chats: it writes chats as InternVL and Qwen do; or it has no chat template, as GPT-2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_CONTROL_TOKENS, *images.tokens.values()],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    framing = ["user\n", "assistant\n"] if chats else [ANSWER_PREFIX]  # words around the texts', one token each
    tokenizer.train_from_iterator([*texts, *framing * 100], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=_CHAT_TEMPLATE.replace("SHOWN", images.shown) if chats else None,
        extra_special_tokens=images.tokens,
    )
