"""Losses of methods that others build on, written out row by row in plain PyTorch from their papers' equations."""

import torch
import torch.nn.functional as F
from supervised import alone, make_examples, make_rows
from torch import Tensor

from multicoco.methods.sim_cot import SimCoTKeys


def smooth_l1(x: Tensor, y: Tensor) -> Tensor:
    difference = (x - y).abs()
    return torch.where(difference < 1, difference.square() / 2, difference - 0.5).mean()


def codi(
    method, model, projection, name: str, stage: int, weights: tuple[float, float, float], filler: int | None
) -> Tensor:
    written: dict[str, list[tuple[Tensor, int]]] = {"student": [], "teacher": []}
    distances = []
    for i, (row, tokens) in enumerate(zip(make_rows(method, name, stage), make_examples(name), strict=True)):
        if i == filler:
            continue
        own = alone(model, row.input_ids, row.inputs)
        if method.keys.thoughts != "pause":
            own.think(projection)
        student = own.layers()
        spoken = [*tokens.prompt, *[t for step in tokens.steps for t in step], *tokens.answer]
        teacher = alone(model, spoken, row.inputs).layers()
        for who, ids, hidden, n_prompt in (
            ("student", row.input_ids, student[-1], len(row.input_ids) - len(tokens.answer)),
            ("teacher", spoken, teacher[-1], len(tokens.prompt)),
        ):
            written[who] += [(model.lm_head(hidden[c - 1]), ids[c]) for c in range(n_prompt, len(ids))]
        before_answer = -len(tokens.answer)  # the announcing token, the first of the answer, stands there
        pairs = [(s[before_answer], t[before_answer].detach()) for s, t in zip(student, teacher, strict=True)]
        distances.append(torch.stack([smooth_l1(s, t) / t.std() for s, t in pairs]).mean())

    def cross_entropy(who: str) -> Tensor:
        logits, labels = zip(*written[who], strict=True)
        return F.cross_entropy(torch.stack(logits), torch.tensor(labels))

    of_teacher, of_student, of_distance = weights
    distance = torch.stack(distances).mean()
    return of_teacher * cross_entropy("teacher") + of_student * cross_entropy("student") + of_distance * distance


def sim_cot(
    method, model, decoder, head, projection, name: str, stage: int, filler: int | None
) -> tuple[Tensor, Tensor]:
    """The language model's loss, and that of the decoder and the head which read."""
    keys = method.section_of(SimCoTKeys)

    def said(head, hidden: Tensor) -> Tensor:
        cap = getattr(model.config, "final_logit_softcapping", None)
        return head(hidden) if cap is None else cap * torch.tanh(head(hidden) / cap)

    words: list[tuple[Tensor, int]] = []
    read: list[tuple[Tensor, int]] = []
    for i, (row, tokens) in enumerate(zip(make_rows(method, name, stage), make_examples(name), strict=True)):
        if i == filler:
            continue
        own = alone(model, row.input_ids, row.inputs)
        thoughts = own.think(projection)
        logits = said(model.lm_head, own.layers()[-1])
        words += [(logits[c], label) for c, label in enumerate(row.labels[1:]) if label != -100]
        # two thoughts a step; the second step's, which are the last, stand for all steps from there on
        steps = tokens.steps[:1] if stage == 1 else [*tokens.steps[:1], [t for step in tokens.steps[1:] for t in step]]
        for k, step in enumerate(steps):
            if not step:
                continue
            of_step = thoughts[2 * k : 2 * k + 2] if keys.reads == "all" else thoughts[2 * k + 1 : 2 * k + 2]
            given = torch.cat([torch.stack(of_step), decoder.get_input_embeddings()(torch.tensor(step))])
            hidden = decoder(inputs_embeds=given[None], use_cache=False).last_hidden_state[0]
            read += [(said(head, hidden[len(of_step) - 1 + n]), token) for n, token in enumerate(step)]

    def cross_entropy(chosen: list[tuple[Tensor, int]]) -> Tensor:
        logits, labels = zip(*chosen, strict=True)
        return F.cross_entropy(torch.stack(logits), torch.tensor(labels))

    return cross_entropy(words), keys.weight * cross_entropy(read)
