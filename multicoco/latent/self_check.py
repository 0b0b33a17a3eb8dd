"""Whether the latent passes compute what a model computes: both are run on the user's own examples, and compared.

Without latent tokens the passes are the model's own forward, split into several. So the same examples go through the
passes, in one padded batch and over the cache, and one by one through the model's forward: in its own attention, with
its own masks and positions. What the cached attention would drop (a window, a bias, a cap, a mask), and what a model
does in a way of its own, is a difference in the logits.

Both run in fp32, whatever the model's precision. Rounding is then about 1e-6 of the logits' spread, a little more in
deep models and between kernels that add in another order; 1e-4 is more than that. Only where a token of a mixture of
experts stands level between two of them may rounding choose another one: there a few positions may differ.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multicoco.errors import UserError
from multicoco.latent.cache import ATTENTION_NAME
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.checks import position_limit
from multicoco.models.families import family_of
from multicoco_kernels import BufferPool

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # as configs call their number
_N_PASSES = 4
_EAGER_COLUMNS = 1024  # longer sequences take PyTorch's attention, which never holds the matrix of all scores
MOST_LOGITS = 2**24  # compared of an example: 64 MiB


@dataclass(frozen=True)
class Tolerance:
    """How far logits may be apart.

    Attributes:
        of_spread: of their spread over the vocabulary.
        exceptions: the share of positions that may be further apart.
        reason: why so much.
    """

    of_spread: float
    exceptions: float
    reason: str

    def difference(self, actual: Tensor, expected: Tensor) -> float:
        """Of (n, V) logits, in the spread of the expected ones, exceptions left out."""
        differences = (actual - expected).abs().amax(-1) / expected.std(-1).mean()  # of each position
        return differences.quantile(1 - self.exceptions).item()


def tolerance_of(model: PreTrainedModel) -> Tolerance:
    """Of a model in fp32."""
    config = model.config.get_text_config()
    if any((getattr(config, key, None) or 0) > 1 for key in _EXPERTS):
        return Tolerance(1e-2, 0.05, "rounding may choose another expert for a few tokens")
    return Tolerance(1e-4, 0.0, "rounding in fp32 is about 1e-6, a little more in deep models")


@torch.no_grad()
def self_check(reasoner: LatentReasoner, examples: Sequence[dict[str, Tensor]]) -> None:
    """Compares the latent passes with the model's own forward, on the device that the model is on.

    Takes seconds for models of up to some 100 M parameters on two CPU cores, and the memory of the model in fp32.

    Args:
        reasoner: of a whole model, before ZeRO partitions it.
        examples: of one row each, a short and a long one: `input_ids` and `attention_mask`, (1, T), and what else the
            model's family takes. Padding, latent tokens and what is too long for the model are left out.

    Raises:
        UserError: they disagree, or cannot be run; names the kind of model, and by how much.
    """
    model = reasoner.model
    config, names = model.config.get_text_config(), family_of(model.config).input_names
    latent, longest = reasoner.latent_token_id, position_limit(model)
    rows = [example["input_ids"][example["attention_mask"].bool()] for example in examples]
    rows = [(row if latent is None else row[row != latent])[:longest] for row in rows]
    inputs = [{name: example[name] for name in names if example.get(name) is not None} for example in examples]
    most = MOST_LOGITS // config.vocab_size
    compared = [torch.linspace(0, len(row) - 1, min(len(row), most)).long() for row in rows]
    was_training = model.training
    try:
        with without_traces(model), in_fp32(model.eval(), *_trained_of_thoughts(reasoner)):
            own = [own_logits(model, *example) for example in zip(rows, inputs, compared, strict=True)]
            passes = _passes_logits(reasoner, rows, inputs, compared)
    except Exception as error:  # a model's code may raise anything
        raise UserError(
            f"latent passes cannot run this {model.config.model_type} model ({type(error).__name__}: {error}): its "
            "attention or its layers are of an unsupported kind, choose another model"
        ) from error
    finally:
        model.train(was_training)
    tolerance = tolerance_of(model)
    for row, expected, actual in zip(rows, own, passes, strict=True):
        if not expected.isfinite().all():
            raise UserError(f"the {model.config.model_type} model's own logits are not finite: its weights are damaged")
        difference = tolerance.difference(actual, expected)
        if not difference <= tolerance.of_spread:
            raise UserError(
                f"latent passes do not compute what the {model.config.model_type} model computes: of an example of "
                f"{len(row)} tokens the logits differ by {difference:.1e} of their spread, rounding explains "
                f"{tolerance.of_spread:.0e}: its attention, positions or head are of an unsupported kind, "
                "choose another model"
            )


def own_logits(model: PreTrainedModel, row: Tensor, inputs: dict[str, Tensor], compared: Tensor) -> Tensor:
    """One example (T,) through the model's own forward -> (n, V) logits of the n columns that are compared."""
    decoder, mask = model.get_decoder(), torch.ones_like(row[None])
    fits = len(row) <= _EAGER_COLUMNS or not decoder._supports_sdpa  # which has no cap on scores
    decoder.set_attn_implementation("eager" if fits else "sdpa")
    try:
        with head_only_at(model, compared[None]):
            further = family_of(model.config).own_inputs(row[None], inputs)
            logits: Tensor = model(row[None], attention_mask=mask, use_cache=False, **further).logits[0]
            return logits
    finally:
        decoder.set_attn_implementation(ATTENTION_NAME)


def _passes_logits(
    reasoner: LatentReasoner, rows: Sequence[Tensor], inputs: Sequence[dict[str, Tensor]], compared: Sequence[Tensor]
) -> list[Tensor]:
    """All examples as a batch, padded on both sides, through the latent passes -> (n, V) logits of each."""
    length = 2 + max(map(len, rows))
    starts = [(length - len(row)) // 2 for row in rows]
    input_ids = rows[0].new_zeros(len(rows), length)
    attention_mask = torch.zeros_like(input_ids)
    columns = torch.zeros(len(rows), max(map(len, compared)), dtype=torch.long)
    for i, (row, start, at) in enumerate(zip(rows, starts, compared, strict=True)):
        input_ids[i, start : start + len(row)] = row
        attention_mask[i, start : start + len(row)] = 1
        columns[i, : len(at)] = start + at
    batch = family_of(reasoner.model.config).batch(inputs)
    n_passes = min(_N_PASSES, length)
    with _own_buffers_and_kernel(reasoner), head_only_at(reasoner.model, columns):
        seeds = torch.arange(len(rows))
        logits = reasoner(input_ids, attention_mask, n_passes=n_passes, return_logits=True, seeds=seeds, **batch).logits
    return [of_row[: len(at)] for of_row, at in zip(logits, compared, strict=True)]


@contextmanager
def head_only_at(model: PreTrainedModel, columns: Tensor) -> Iterator[None]:
    """Inside, the head makes logits of (B, n) columns alone: those of a long sequence would be gigabytes."""

    def choose(head: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        if args[0].ndim != 3:  # not of the columns: thoughts that are words ask it too
            return args
        index = columns.to(args[0].device)[..., None].expand(-1, -1, args[0].shape[-1])
        return (args[0].gather(1, index),)

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def _trained_of_thoughts(reasoner: LatentReasoner) -> list[nn.Module]:
    return [reasoner.thought_source] if isinstance(reasoner.thought_source, nn.Module) else []


@contextmanager
def _own_buffers_and_kernel(reasoner: LatentReasoner) -> Iterator[None]:
    """Inside, no buffer is left for the run, and the kernel is one for where the model is."""
    buffers, kernel = reasoner.cache_buffers, reasoner.kernel
    reasoner.cache_buffers, reasoner.kernel = defaultdict(BufferPool), kernel_for(reasoner.model, kernel)
    try:
        yield
    finally:
        reasoner.cache_buffers, reasoner.kernel = buffers, kernel


def kernel_for(model: PreTrainedModel, kernel: str) -> str:
    """That of a run, or PyTorch's where the run has a GPU and the model is not there yet."""
    return "flash" if model.device.type == "cpu" and torch.cuda.is_available() else kernel


_CAPTURING = "_output_capturing_hooks_installed"  # how transformers marks a model whose layers have its hooks


@contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """Afterwards, no module has hooks that it had not before.

    transformers puts them on a vision tower's layers when its hidden states are first asked for. A rank that had them
    before DeepSpeed's would hand on what a layer gives before ZeRO-3 marks it, and meet other modules in backward than
    the ranks that have not run the check.
    """
    before = [(module, module._forward_hooks.copy(), module.__dict__.get(_CAPTURING)) for module in model.modules()]
    try:
        yield
    finally:
        for module, hooks, mark in before:
            module._forward_hooks.clear()
            module._forward_hooks.update(hooks)
            if mark is None:
                module.__dict__.pop(_CAPTURING, None)


@contextmanager
def in_fp32(*modules: nn.Module) -> Iterator[None]:
    """Inside, all parameters and buffers have at least fp32, which holds bf16 and fp16 exactly; products are fp32's."""
    tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)
    narrow = [x for x in tensors if x.is_floating_point() and x.dtype.itemsize < 4]
    dtypes, precision = [x.dtype for x in narrow], torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for tensor in narrow:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in zip(narrow, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)
        torch.set_float32_matmul_precision(precision)
