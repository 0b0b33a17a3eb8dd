"""A training step of every method against plain Coconut's, and against the way its paper's code computes it: passes
with a DynamicCache that is cut, logits at every position, a decoder call for each thought, a forward for the teacher,
all columns of the written steps.

Both ways of a method have the same weights, rows and loss, which is shown.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from baselines import full_cross_entropy, make_step
from common import EOS, LATENT, WORD, Geometry, in_new_process, parser, peak_resident
from measuring import Report
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.collate import Collator, Row
from multicoco.latent.schedule import Pass
from multicoco.methods import Method, method_class
from multicoco.methods.thinking import thinking_model

STEP_TOKENS = 8  # of each written step; a thought stands for one
OURS, PUBLISHED = "multicoco", "as published"
# of the run config; those named `parallel` have more thoughts
METHODS: dict[str, dict[str, Any]] = {
    "coconut": {},
    "coconut, last pass alone": {"coconut": {"gradient_passes": 1}},
    "coconut, projected": {"coconut": {"projection": "mlp"}},
    "sim_cot": {"method": "sim_cot"},
    "sim_cot, self": {"method": "sim_cot", "sim_cot": {"decoder": "self"}},
    "codi": {"method": "codi"},
    "c_mtp": {"method": "c_mtp", "c_mtp": {"words": STEP_TOKENS}},
    "parallel, in sequence": {},
    "parallel, jacobi": {"coconut": {"jacobi_iterations": 3}},
}

Loss = Callable[[], Tensor]


@dataclass
class Task(Geometry):
    """Rows of one length: question, latents, answer; and what the latents stand for."""

    parallel_latents: int = 24

    def of(self, name: str) -> "Task":
        return replace(self, latents=self.parallel_latents) if name.startswith("parallel") else self

    def method(self, name: str) -> Method:
        given = {"method": "coconut", **METHODS[name]}
        own = {"enabled": True, "max_latent_stage": self.latents, "first_stage": self.latents + 1}
        given["coconut"] = own | given.get("coconut", {})
        config = RunConfig(mode="train", name="benchmark", model_id="m", train_path="t", num_epochs=1, **given)
        return method_class(config.trained_method)(config, LatentTokens(WORD, LATENT, WORD + 1))

    def collated(self, method: Method) -> dict[str, Any]:
        rng = torch.Generator().manual_seed(1)

        def words(n: int) -> list[int]:
            ids: list[int] = torch.randint(WORD + 2, self.vocabulary, (n,), generator=rng).tolist()
            return ids

        rows, stage = [], self.latents + 1
        for i in range(self.batch):
            steps = [words(STEP_TOKENS) for _ in range(self.latents)]
            tokens = ExampleTokens(words(self.prefix), steps, words(self.suffix), answer_prefix=1)
            asked = method.supervision(tokens, stage, 0, str(i))
            rows.append(Row(*method.train_row(tokens, stage, 0, str(i)), i, supervision=asked))
        return Collator(EOS, LATENT, lambda inputs: {})(rows)


def ours(task: Task, name: str) -> tuple[nn.Module, Loss]:
    method, model = task.method(name), task.model().train()
    batch, reasoner = task.collated(method), thinking_model(method, model, LATENT)
    tokens = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    supervision, on_host = None, tokens
    if asked := batch["supervision"]:
        supervision = asked | {"divisors": torch.tensor(method.counts(batch)).clamp(min=1)}
        on_host = tokens | {key: tensor for key, tensor in asked.items() if isinstance(tensor, Tensor)}
    n_passes = method.passes(task.latents + 1)
    return reasoner, lambda: reasoner(**tokens, on_host=on_host, n_passes=n_passes, supervision=supervision).loss


class Ran(NamedTuple):
    """Of all columns the logits and what was fed, and of the last pass, from `start`, the states of every layer."""

    logits: Tensor
    fed: list[Tensor]
    states: Sequence[Tensor]
    start: int


def run_passes(model: PreTrainedModel, ids: Tensor, passes: Sequence[Pass]) -> Ran:
    """With transformers' cache, cut before each pass to what came before it, and logits at every position."""
    embeds = list(model.get_input_embeddings()(ids).unbind(1))
    layers: list[tuple[Tensor, Tensor]] = []
    hidden: dict[int, Tensor] = {}
    logits: dict[int, Tensor] = {}
    for start, end, fills, _ in passes:
        made = {column: hidden[column - 1] for column in range(start, start + fills)}
        embeds = [made.get(column, before) for column, before in enumerate(embeds)]
        output = model(
            inputs_embeds=torch.stack(embeds[start:end], dim=1),
            past_key_values=DynamicCache([(keys[:, :, :start], values[:, :, :start]) for keys, values in layers]),
            use_cache=True,
            output_hidden_states=True,
        )
        layers = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        hidden |= dict(enumerate(output.hidden_states[-1].unbind(1), start))
        logits |= dict(enumerate(output.logits.unbind(1), start))
    return Ran(torch.stack([logits[c] for c in sorted(logits)], dim=1), embeds, output.hidden_states[1:], start)


def published(task: Task, name: str) -> tuple[nn.Module, Loss]:
    method, model = task.method(name), task.model().train()
    batch = task.collated(method)
    ids, labels, supervision = batch["input_ids"], batch["labels"], batch["supervision"]
    first = task.prefix + 1  # behind the token that begins the thoughts
    columns = range(first, first + task.latents)
    length = first + task.latents + 1 + task.suffix  # teachers' branches are behind that
    passes = method.pass_schedule.passes(columns, (), length, None)
    reader = copy.deepcopy(model) if name == "sim_cot" else model

    def coconut() -> Ran:
        return run_passes(model, ids[:, :length], passes)

    def language(ran: Ran) -> Tensor:
        return full_cross_entropy(ran.logits, labels[:, :length])

    def sim_cot() -> Tensor:
        ran, total = coconut(), torch.zeros(())
        for k, column in enumerate(columns):  # a call for each thought
            step = supervision["stretches"][:, k]
            given = torch.cat([ran.fed[column][:, None], reader.get_input_embeddings()(step)], dim=1)
            written = reader(inputs_embeds=given, use_cache=False).logits[:, :-1]
            total = total + F.cross_entropy(written.flatten(0, 1).float(), step.flatten()) / task.latents
        return language(ran) + total

    def codi() -> Tensor:
        student, fork, rows = coconut(), supervision["fork"], range(task.batch)
        at, taught_at = (supervision["announced"] - torch.tensor([student.start, fork.branch - fork.column])).unbind(1)
        # the question once more
        spoken, said = (torch.cat([x[:, : fork.column], x[:, fork.branch :]], dim=1) for x in (ids, labels))
        teacher = model(spoken, use_cache=False, output_hidden_states=True)
        distances = []
        for learned, taught in zip(student.states, teacher.hidden_states[1:], strict=True):
            x, y = learned[rows, at], taught[rows, taught_at].detach()
            distances.append(F.smooth_l1_loss(x, y, reduction="none").mean(-1) / y.std(-1))
        return full_cross_entropy(teacher.logits, said) + language(student) + torch.stack(distances).mean()

    heads: Any = method.projection(model) if name == "c_mtp" else None

    def c_mtp() -> Tensor:
        """A span keeps its columns, of which all but the first are masked; all heads speak in every column."""
        said, embed = supervision["stretches"], model.get_input_embeddings()  # [B, K, STEP_TOKENS]
        before, after = ids[:, :first], ids[:, first + task.latents : length]
        spans = embed(said).mean(2).repeat_interleave(STEP_TOKENS, dim=1)
        column = torch.arange(first + spans.shape[1] + after.shape[1])
        in_spans = (column >= first) & (column < first + spans.shape[1])
        stays = (~in_spans | ((column - first) % STEP_TOKENS == 0)).long().expand(task.batch, -1)
        hidden = model.get_decoder()(
            inputs_embeds=torch.cat([embed(before), spans, embed(after)], dim=1),
            attention_mask=stays,
            position_ids=stays.cumsum(1) - 1,
            use_cache=False,
        ).last_hidden_state
        speaking = [first - 1, *range(first, first + (task.latents - 1) * STEP_TOKENS, STEP_TOKENS)]
        words = model.lm_head(heads.states(hidden))[:, speaking]  # [B, K, STEP_TOKENS, V]
        written = torch.cat(
            [labels[:, :first], torch.full_like(said.flatten(1), -100), labels[:, -after.shape[1] :]], 1
        )
        of_words = F.cross_entropy(words.flatten(0, 2).float(), said.flatten())
        return full_cross_entropy(model.lm_head(hidden), written) + of_words

    trained = nn.ModuleList([model, reader, *([] if heads is None else [heads])])
    ways = {"sim_cot": sim_cot, "sim_cot, self": sim_cot, "codi": codi, "c_mtp": c_mtp}
    return trained, ways.get(name, lambda: language(coconut()))


ALIKE = {"coconut, last pass alone", "coconut, projected"}  # they change the gradient or what is fed, not the way


def sides(task: Task) -> dict[tuple[str, str], Callable[[], tuple[nn.Module, Loss]]]:
    ways = {OURS: ours, PUBLISHED: published}
    return {
        (name, way): lambda name=name, way=way: ways[way](task.of(name), name)
        for name in METHODS
        for way in ways
        if way == OURS or name not in ALIKE
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--memory-of", nargs=2, help="print the peak memory of one step of this method and way alone")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    task = Task(**args.geometry)
    if args.memory_of:
        model, loss_of = sides(task)[tuple(args.memory_of)]()
        step, _ = make_step(model, lambda _: loss_of(), {})
        step()
        before, peak = peak_resident(step)
        print(json.dumps({"peak": peak - before}))
        return
    report = Report("methods", task, args.out)
    for plain in ("coconut", "parallel, in sequence"):
        compare(report, task, plain, args.repeats)
    report.finish()


def compare(report: Report, task: Task, plain: str, repeats: int) -> None:
    """A row for each method and way, of those with as many thoughts as the plain one."""
    chosen = [side for side in sides(task) if task.of(side[0]) == task.of(plain)]
    steps = {}
    for side in chosen:
        model, loss_of = sides(task)[side]()
        steps[side] = make_step(model, lambda _, loss_of=loss_of: loss_of(), {})
    times = report.in_turn({", ".join(side): step for side, (step, _) in steps.items()}, repeats)
    for name, way in chosen:
        time = times[f"{name}, {way}"]
        alone = in_new_process(__file__, "--geometry", json.dumps(asdict(task)), "--memory-of", name, way)
        row = {
            "K": task.of(name).latents,
            "method": name,
            "way": way,
            "loss": f"{steps[name, way][1][0]:.6f}",
            "step_s": time.median,
            **time.over(times[f"{plain}, {OURS}"], "of_coconuts"),
            "peak_mib": alone["peak"] / 2**20,
        }
        report.add(row)
        if way == PUBLISHED:
            faster = time.over(times[f"{name}, {OURS}"], "speed_up")["speed_up"]
            report.goal(f"{name}: speed against its published way", ">= 1", faster, faster >= 1)
    if plain != "coconut":
        ratio = times[f"parallel, jacobi, {OURS}"].over(times[f"{plain}, {OURS}"], "ratio")["ratio"]
        report.goal(f"jacobi, of {task.parallel_latents} sequential thoughts", "<= 0.5", ratio, ratio <= 0.5)


if __name__ == "__main__":
    main()
