"""Whether the latent passes compute what a model computes: both are run on the user's own examples, and compared.

Without latent tokens the passes are the model's own forward, split into several. So the same examples go through the
passes, in one padded batch and over the cache, and one by one through the model's forward: in its own attention, with
its own masks and positions. What the cached attention would drop (a window, a bias, a cap, a mask), and what a model
does in a way of its own, is a difference in the logits.

Both run in fp32, whatever the model's precision. Rounding is then about 1e-6 of the logits' spread, a little more in
deep models and between kernels that add in another order; 1e-4 is more than that. Only where a token of a mixture of
experts stands level between two of them may rounding choose another one: there a few positions may differ.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from multicoco.errors import UserError
from multicoco.latent.cache import ATTENTION_NAME
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.checks import position_limit
from multicoco.models.families import family_of
from multicoco_kernels import BufferPool

_TOLERANCE, _TOLERANCE_OF_EXPERTS = 1e-4, 1e-2  # of the spread of the logits over the vocabulary
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # as configs call their number
_EXCEPTIONS_OF_EXPERTS = 0.05  # the share of positions that may differ by more
_N_PASSES = 4
_EAGER_COLUMNS = 1024  # longer sequences take PyTorch's attention, which never holds the matrix of all scores
_MOST_LOGITS = 2**24  # compared of an example: 64 MiB


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
    most = _MOST_LOGITS // config.vocab_size
    compared = [torch.linspace(0, len(row) - 1, min(len(row), most)).long() for row in rows]
    was_training = model.training
    try:
        with _in_fp32(model.eval()):
            own = [_own_logits(reasoner, *example) for example in zip(rows, inputs, compared, strict=True)]
            passes = _passes_logits(reasoner, rows, inputs, compared)
    except Exception as error:  # a model's code may raise anything
        raise UserError(
            f"latent passes cannot run this {model.config.model_type} model ({type(error).__name__}: {error}): its "
            "attention or its layers are of an unsupported kind, choose another model"
        ) from error
    finally:
        model.train(was_training)
    has_experts = any((getattr(config, key, None) or 0) > 1 for key in _EXPERTS)
    tolerance, exceptions = (_TOLERANCE_OF_EXPERTS, _EXCEPTIONS_OF_EXPERTS) if has_experts else (_TOLERANCE, 0.0)
    for row, expected, actual in zip(rows, own, passes, strict=True):
        if not expected.isfinite().all():
            raise UserError(f"the {model.config.model_type} model's own logits are not finite: its weights are damaged")
        differences = (actual - expected).abs().amax(-1) / expected.std(-1).mean()  # of each position
        difference = differences.quantile(1 - exceptions).item()
        if not difference <= tolerance:
            raise UserError(
                f"latent passes do not compute what the {model.config.model_type} model computes: of an example of "
                f"{len(row)} tokens the logits differ by {difference:.1e} of their spread, rounding explains "
                f"{tolerance:.0e}: its attention, positions or head are of an unsupported kind, choose another model"
            )


def _own_logits(reasoner: LatentReasoner, row: Tensor, inputs: dict[str, Tensor], compared: Tensor) -> Tensor:
    """One example (T,) through the model's own forward -> (n, V) logits of the n columns that are compared."""
    decoder, mask = reasoner.decoder, torch.ones_like(row[None])
    decoder.set_attn_implementation("eager" if len(row) <= _EAGER_COLUMNS else "sdpa")
    try:
        with _head_only_at(reasoner, compared[None]):
            further = family_of(reasoner.model.config).own_inputs(row[None], inputs)
            logits: Tensor = reasoner.model(row[None], attention_mask=mask, use_cache=False, **further).logits[0]
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
    with _own_buffers_and_kernel(reasoner), _head_only_at(reasoner, columns):
        seeds = torch.arange(len(rows))
        logits = reasoner(input_ids, attention_mask, n_passes=n_passes, return_logits=True, seeds=seeds, **batch).logits
    return [of_row[: len(at)] for of_row, at in zip(logits, compared, strict=True)]


@contextmanager
def _head_only_at(reasoner: LatentReasoner, columns: Tensor) -> Iterator[None]:
    """Inside, the head makes logits of (B, n) columns alone: those of a long sequence would be gigabytes."""

    def choose(head: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        index = columns.to(args[0].device)[..., None].expand(-1, -1, args[0].shape[-1])
        return (args[0].gather(1, index),)

    handle = reasoner.model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _own_buffers_and_kernel(reasoner: LatentReasoner) -> Iterator[None]:
    """Inside, no buffer is left for the run, and where it has a GPU, a model on the CPU takes PyTorch's kernel."""
    buffers, kernel = reasoner.cache_buffers, reasoner.kernel
    reasoner.cache_buffers = BufferPool()
    if reasoner.decoder.device.type == "cpu" and torch.cuda.is_available():
        reasoner.kernel = "flash"
    try:
        yield
    finally:
        reasoner.cache_buffers, reasoner.kernel = buffers, kernel


@contextmanager
def _in_fp32(model: nn.Module) -> Iterator[None]:
    """Inside, all parameters and buffers have at least fp32, which holds bf16 and fp16 exactly; products are fp32's."""
    narrow = [x for x in chain(model.parameters(), model.buffers()) if x.is_floating_point() and x.dtype.itemsize < 4]
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
