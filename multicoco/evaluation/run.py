"""A run that only evaluates (`mode: eval_only`)."""

from transformers import set_seed

from multicoco.config import RunConfig
from multicoco.config.combinations import PUBLISHED_MODES
from multicoco.engine.assembly import assemble, prompt_date, weights_of
from multicoco.engine.process_group import ProcessGroup
from multicoco.engine.ranks import agree
from multicoco.engine.records import load_records
from multicoco.engine.resume import config_changes, lock_run_folder
from multicoco.engine.weights import Weights
from multicoco.evaluation.evaluator import Evaluator, check_questions
from multicoco.methods import evaluated_methods, method_class, thinking_method
from multicoco.registry import names
from multicoco.tracking import Tracker


class EvaluationRun:
    """Everything an evaluation needs, built from its config; `run` does it.

    A checkpoint is asked as it was trained: at its stage, with its method's keys and its prompts' date.

    Raises:
        UserError: data or model do not fit; on every rank, before anything is written.
    """

    def __init__(self, config: RunConfig):
        self.group = group = ProcessGroup(config.lost_rank_seconds)
        questions = load_records(config, config.val_path, config.max_val_samples)
        set_seed(config.seed)
        weights = weights_of(config)
        config, self.stage, changes = as_trained(config, weights)
        if changes and group.rank == 0:
            print("as the checkpoint was trained:", *changes, sep="\n  ", flush=True)
        assembly = assemble(config, weights, prompt_date(config, weights.state), questions, group.device)
        agree(lambda: check_questions(config, assembly, [self.stage], questions), only_rank_0=True)
        assembly.reasoner.to(group.device)
        self.run_lock = agree(lambda: lock_run_folder(config.run_dir) if group.rank == 0 else None)
        set_seed(config.seed + group.rank)
        self.tracker = agree(lambda: Tracker(config.run_dir, config, enabled=group.rank == 0))
        about = {"checkpoint": weights.how or weights.source}
        self.evaluator = Evaluator(config, assembly, questions, self.tracker, about=about)

    def run(self) -> None:
        """Evaluates by every method that the config asks for."""
        with self.group.watched():
            self.evaluator.run("final", self.stage, step=0)
            self.tracker.close()


def as_trained(config: RunConfig, weights: Weights) -> tuple[RunConfig, int, list[str]]:
    """The config with the method's keys of the checkpoint that is evaluated, if it is evaluated by that method.

    Returns: the config, the stage to evaluate at (the last one, where no checkpoint tells), and what has changed.
    """
    thinking = thinking_method(config)
    last_stage = thinking(config).schedule.max_latent_stage if thinking else 0
    trained = weights.config or {}
    name = (weights.state and weights.state.method) or PUBLISHED_MODES.get(str(trained.get("mode")))
    changes: list[str] = []
    if config.method is None and weights.state and name in names("methods") and name not in evaluated_methods(config):
        controlled = config.model_copy(update={"method": name})  # for which eval_config may name the method it controls
        if name in evaluated_methods(controlled):
            config, changes = controlled, [f"method: null -> {name}"]
    if weights.state is None or name is None or name not in evaluated_methods(config):
        return config, last_stage, []
    method = method_class(name)
    sections = {name: keys.model_validate(trained[name]) for name, keys in method.sections().items() if name in trained}
    if not sections:
        return config, weights.state.stage if method.has_thoughts else last_stage, changes
    for section, keys in sections.items():
        own = getattr(config, section)
        changes += [f"{section}.{key}: {change}" for key, change in config_changes(own.model_dump(), keys.model_dump())]
    return config.model_copy(update=sections), weights.state.stage, changes
