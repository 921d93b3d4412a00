"""The recipe: one frozen, strict tree that says everything a run depends on.

A part with several forms carries a `kind`. Unknown keys are errors. A recipe is checked as a whole when it is built
(`anabranch.recipe.checks`), before any model is loaded. No torch here.
"""

from __future__ import annotations

from pydantic import Field, StrictFloat, StrictInt, model_validator

from anabranch.recipe.environment import Calculator, EnvironmentSettings, Latency, PythonTool, Verifiers
from anabranch.recipe.method import (
    Algorithm,
    Asynchronous,
    Clip,
    Dynamic,
    Kl,
    Mismatch,
    Overlong,
    Prior,
    Prioritised,
    Reset,
    RolloutSettings,
    Sampler,
    TorchEngine,
    Tracker,
    Uniform,
)
from anabranch.recipe.part import Part
from anabranch.recipe.problems import (
    WORKED,
    Answer,
    Data,
    HubDataset,
    JsonLines,
    Model,
    Prompt,
    ReasoningGym,
    VerifiersTasks,
)
from anabranch.recipe.reward import Constant, CosineLength, Cycle, Reward, RewardTerm
from anabranch.recipe.training import (
    ColdStart,
    Diagnostics,
    Evaluation,
    Optim,
    Probes,
    Save,
    Sft,
    Train,
)

__all__ = [
    "WORKED",
    "Algorithm",
    "Answer",
    "Asynchronous",
    "Calculator",
    "Clip",
    "ColdStart",
    "Constant",
    "CosineLength",
    "Cycle",
    "Data",
    "Diagnostics",
    "Dynamic",
    "EnvironmentSettings",
    "Evaluation",
    "HubDataset",
    "JsonLines",
    "Kl",
    "Latency",
    "Mismatch",
    "Model",
    "Optim",
    "Overlong",
    "Part",
    "Prior",
    "Prioritised",
    "Probes",
    "Prompt",
    "PythonTool",
    "ReasoningGym",
    "Recipe",
    "Reset",
    "Reward",
    "RewardTerm",
    "RolloutSettings",
    "Sampler",
    "Save",
    "Sft",
    "TorchEngine",
    "Tracker",
    "Train",
    "Uniform",
    "Verifiers",
    "VerifiersTasks",
]


class Recipe(Part):
    """Everything a run depends on."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """What it is called; run folders are named after it."""
    seed: StrictInt = Field(0, ge=0, lt=2**32)
    """Everything random depends on it and on nothing else."""
    steps: StrictInt = Field(10, ge=0)
    """RL steps."""
    seconds: StrictFloat | None = Field(None, gt=0)
    """Stop RL after so much wall-clock time (checked between steps); None: no limit."""
    model: Model = Model()
    """Which model, and how it computes."""
    data: Data = ReasoningGym()
    """The problems to train on."""
    prompt: Prompt = Prompt()
    """How a question becomes a chat prompt."""
    answer: Answer = Answer()
    """How a final answer is found and compared."""
    sampling: Sampler = Uniform()
    """Which problems come next."""
    rollout: RolloutSettings = RolloutSettings()
    """How many answers are sampled, and how."""
    engine: TorchEngine = TorchEngine()
    """What generates the answers."""
    environment: EnvironmentSettings | None = None
    """What answers act on between their turns. None: the model writes its answer in one go."""
    reward: tuple[Reward, ...] = (RewardTerm(),)
    """The terms of the reward."""
    algorithm: Algorithm = Algorithm()
    """From rewards to a loss."""
    optim: Optim = Optim()
    """The optimizer."""
    train: Train = Train()
    """How a batch becomes optimizer steps."""
    cold_start: ColdStart | None = None
    """Supervised steps on generated examples before RL; None: none."""
    sft: Sft | None = None
    """Supervised steps on worked examples from a file before RL; None: none."""
    evaluation: Evaluation | None = None
    """Held-out accuracy before and after; None: none."""
    save: Save = Save()
    """Checkpoints."""
    probes: Probes = Probes()
    """Checks at the start of a run."""
    diagnostics: Diagnostics = Diagnostics()
    """What RL steps look at beside training."""

    @property
    def tracks(self) -> bool:
        """Whether the value of every problem is kept."""
        return self.algorithm.baseline == "tracker" or isinstance(self.sampling, Prioritised)

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        from anabranch.recipe.checks import check  # here: checks reads the classes above

        check(self)
        return self
