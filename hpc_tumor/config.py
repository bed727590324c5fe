"""Frozen, validated settings: what to run (`Experiment`) and where (`ClusterProfile`).

Everything is refused at construction, with a message that names the setting, the value and what is allowed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hpc_tumor.errors import UsageError
from hpc_tumor.validation import SettingError, Settings
from hpc_tumor.vocabulary import parse_seconds, series

Task = Literal["classification", "segmentation"]
SPLITS: dict[str, tuple[str, ...]] = {
    "classification": ("deduplicated", "published"),
    "segmentation": ("by-patient", "published"),
}
CLASSIFICATION_SIZE = 128  # pixels per side for training, in the published study
LOSSES: dict[str, tuple[str, ...]] = {
    "classification": ("cross-entropy", "focal"),
    "segmentation": ("bce", "dice-bce", "dice-ce", "focal"),
}
# Validation scores of which more is better; and loss, of which less is. Not the accuracy of voxels, which is high for
# an empty prediction: most of them are background.
BEST_BY = {
    "classification": r"loss|accuracy|confidence|balanced_accuracy|mcc|(precision|recall|f1)(_[\w-]+)?",
    "segmentation": r"loss|(dice|iou|precision|recall)(_(NCR|ED|ET|WT|TC))?",
}
ALLOWED_BEST_BY = {
    "classification": "loss, accuracy, confidence, balanced_accuracy, mcc, precision, recall or f1, the last three also"
    " of one class (recall_glioma)",
    "segmentation": "loss, dice, iou, precision or recall, all but loss also of NCR, ED, ET, WT or TC (dice_WT)",
}
OUTPUTS = {"classification": 4, "segmentation": 3}  # classes; labels NCR/NET, ED and ET


class ModelSettings(Settings):
    """Which network."""

    name: str = Field(description="one of the seven networks")
    filters: int | None = Field(None, ge=1, le=1024, description="first filters of a U-Net; absent: the published 32")


class DataSettings(Settings):
    """Which store, and what of it."""

    store: Path = Field(description="Zarr store made by prepare-data")
    split: str | None = Field(None, description="by-patient, deduplicated or published; absent: the task's default")
    split_file: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None, description="file that says what trains and tests, made by `split`; in the place of `split` and `fold`"
    )
    fold: int | None = Field(None, ge=0, description="which of `folds` parts is the test part; absent: one split")
    split_seed: int = Field(
        0, ge=0, lt=2**31, description="of the split alone, so that runs of many seeds test the same cases"
    )
    folds: int = Field(5, ge=2, le=100, description="number of folds, where `fold` is given")
    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the training cases held out to choose the best epoch"
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share of the cases held out for the scores")
    slices: float = Field(
        0.5, gt=0, le=1, description="middle share of the axial slices of a case; the published study takes 0.5"
    )
    keep: Literal["auto", "gpu", "host", "none"] = Field(
        "auto",
        description="memory in which training and validation samples stay after the first epoch; auto: the GPU's where"
        " they fit, else the host's, one copy per node, else none",
    )
    keep_gb: float | None = Field(
        None, gt=0, description="most memory that `keep` takes; absent: 40 % of the GPU's, half of what a node has free"
    )
    image_size: int | None = Field(
        None,
        ge=16,
        le=2048,
        description="pixels per side for training; absent: 128 for classification, as stored for segmentation",
    )


def _weights(value: Any) -> Any:
    """Weights as files give them, or with commas between them, as they are typed: `1,2,3`."""
    if value is None or value == "balanced":
        return value
    numbers = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(float(number) for number in numbers)
    except (TypeError, ValueError):
        raise ValueError("write balanced, or numbers with commas between them, such as 1,2,0.5") from None


class Recipe(Settings):
    """Recipe: the settings of training."""

    epochs: int = Field(20, ge=1, le=100_000)
    batch_size: int = Field(32, ge=1, le=65_536, description="global batch, divided among the ranks")
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0, le=10)
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 for adam and sgd, decoupled for adamw")
    schedule: Literal["none", "step", "exponential", "cosine", "polynomial"] = Field(
        "none", description="step and exponential change the rate once per epoch, cosine and polynomial in every step"
    )
    step_epochs: int = Field(10, ge=1, description="epochs between two steps of the step schedule")
    gamma: float = Field(0.5, gt=0, le=1, description="factor of the step and exponential schedules")
    power: float = Field(0.9, gt=0, le=10, description="of the polynomial schedule: (1 - progress) ** power")
    warmup_epochs: float = Field(0, ge=0, description="epochs in which the rate grows from near 0 to the schedule's")
    augment: bool = Field(False, description="the published set for images; flips, rotation, scaling … for slices")
    loss: str | None = Field(
        None, description="cross-entropy or focal; bce, dice-bce, dice-ce or focal; absent: the task's published one"
    )
    class_weights: Annotated[Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(_weights)] = Field(
        None, description="weight in the loss of each class, or of each label (NCR/NET, ED, ET); balanced: by frequency"
    )
    focal_gamma: float = Field(2.0, ge=0, le=10, description="focus of the focal loss on what is hard")
    clip_gradients: float | None = Field(None, gt=0, description="largest norm of all gradients together")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay per step of a running mean of the weights, which is then what is scored"
    )
    early_stopping: int | None = Field(
        None, ge=1, description="epochs without a better validation score after which training ends"
    )
    skip_nonfinite: int = Field(
        0, ge=0, description="steps of a run whose loss or gradients may be non-finite; each is left out, and said"
    )


class HardwareSettings(Settings):
    """On what."""

    gpus: int = Field(1, ge=1, le=4096, description="ranks: one per GPU, or CPU processes where there is no GPU")
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    channels_last: bool = True
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: where it was measured to pay, for this network on this device"
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=4096,
        description="micro-batches into which a rank splits its share of a batch, to need less memory",
    )
    deterministic: bool = Field(False, description="same bits on every run, at a cost on GPUs")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of a rank; absent: the CPUs given, divided by the ranks of the node"
    )
    timeout_minutes: float = Field(
        15, gt=0, description="without any progress, after which a rank counts as hung and the run ends"
    )


class ScoringSettings(Settings):
    """Settings by which the finished network is tested. Validation during training is always plain."""

    flips: bool = Field(False, description="average the logits over the flips of each sample")
    clean: bool = Field(
        False,
        description="remove small pieces of predicted tumour, and enhancing tumour below a threshold; both thresholds"
        " are chosen on the validation patients",
    )


class Experiment(Settings):
    """One run: everything that decides what is trained, on what data, and how."""

    model: ModelSettings
    data: DataSettings
    recipe: Recipe = Recipe()
    hardware: HardwareSettings = HardwareSettings()
    scoring: ScoringSettings = ScoringSettings()
    seed: int = Field(0, ge=0, lt=2**31)
    task: Task
    limit_batches: int | None = Field(None, ge=1, description="at most so many batches per epoch and part (debugging)")
    checkpoint_minutes: float = Field(
        10, gt=0, description="at most so long between two checkpoints; one follows each epoch too"
    )
    keep_every: int | None = Field(None, ge=1, description="epochs between two checkpoints that are kept for good")
    best_by: str | None = Field(
        None, description="validation score that chooses the best epoch, or loss; absent: dice or accuracy"
    )
    profile: bool = Field(False, description="write a trace of a few steps, for Perfetto or chrome://tracing")
    tensorboard: bool = Field(False, description="mirror the metrics for TensorBoard; needs the extra `tensorboard`")

    @model_validator(mode="after")
    def _choices_of_the_task(self) -> Self:
        for what, value, allowed in (
            ("data.split", self.data.split, SPLITS[self.task]),
            ("recipe.loss", self.recipe.loss, LOSSES[self.task]),
        ):
            if value is not None and value not in allowed:
                raise SettingError(what, f"= {value!r} is not for {self.task}: choose {series(allowed, 'or')}")
        weights, outputs = self.recipe.class_weights, OUTPUTS[self.task]
        if isinstance(weights, tuple) and (len(weights) != outputs or not all(weight > 0 for weight in weights)):
            raise SettingError(
                "recipe.class_weights",
                f"= {list(weights)} does not fit {self.task}: give {outputs} numbers above 0, or balanced",
            )
        for what in ("split", "fold"):
            if self.data.split_file is not None and (value := getattr(self.data, what)) is not None:
                raise SettingError(
                    f"data.{what}",
                    f"= {value!r} and data.split_file both say what tests: leave out one of them",
                )
        recipe = self.recipe
        if recipe.warmup_epochs >= recipe.epochs and recipe.warmup_epochs:
            raise SettingError(
                "recipe.warmup_epochs",
                f"= {recipe.warmup_epochs:g} of {recipe.epochs} epochs: choose fewer",
            )
        if recipe.early_stopping and not self.data.val_fraction and self.data.split_file is None:
            raise ValueError(
                "recipe.early_stopping needs a validation part: set data.val_fraction above 0, or leave it out"
            )
        if self.scoring.clean and (self.task != "segmentation" or not (self.data.val_fraction or self.data.split_file)):
            raise SettingError("scoring.clean", "= True is for segmentation with validation patients: set it to false")
        if self.best_by is not None and not re.fullmatch(BEST_BY[self.task], self.best_by):
            raise SettingError(
                "best_by",
                f"= {self.best_by!r} is no score of {self.task} to choose by: choose {ALLOWED_BEST_BY[self.task]}",
            )
        if self.data.fold is not None and self.data.fold >= self.data.folds:
            raise SettingError(
                "data.fold",
                f"= {self.data.fold} of {self.data.folds} folds: choose 0 to {self.data.folds - 1}",
            )
        if self.recipe.batch_size < self.hardware.gpus:
            raise SettingError(
                "recipe.batch_size",
                f"= {self.recipe.batch_size} cannot be divided among {self.hardware.gpus} GPUs:"
                " choose fewer GPUs or a larger batch",
            )
        return self

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises UsageError where the best epoch is to be chosen by a class that is none of a store's."""
        name = (self.best_by or "").partition("_")[2] if self.best_by != "balanced_accuracy" else ""
        if classes and name and name not in classes:
            raise UsageError(f"best_by = {self.best_by!r}: the store has no class {name!r}, but {', '.join(classes)}.")

    @property
    def signature(self) -> str:
        """Hash of the settings that differ from their defaults, as canonical JSON: a later version's stay out of it."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def split(self) -> str:
        """The split in use: the one asked for, else the task's default."""
        return self.data.split or SPLITS[self.task][0]

    @property
    def loss(self) -> str:
        """The loss in use: the one asked for, else the task's."""
        return self.recipe.loss or LOSSES[self.task][0]


def _minutes(value: Any) -> Any:
    """Walltime as SLURM writes it (`MM`, `HH:MM:SS`, `D-HH:MM:SS`, …) or with units (`90m`, `2h`) → minutes."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text):
        return max(1, round(float(match[1]) * {"s": 1 / 60, "m": 1, "h": 60, "d": 1440}[match[2]]))
    if (seconds := parse_seconds(text)) is not None:
        return math.ceil(seconds / 60)
    raise ValueError(f"{value!r} is not a time: write 02:00:00, 1-12:00:00, 90m or 2h")


# Options of sbatch on which the launching itself stands: where logs go, what is warned when, what is one of an array.
# And those that have an option of their own here.
OURS = frozenset({
    "array", "output", "error", "open-mode", "signal", "requeue", "no-requeue", "dependency", "wrap", "parsable",
    "job-name", "time", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "mem", "mem-per-cpu", "mem-per-gpu",
    "gres", "gpus", "gpus-per-node", "gpus-per-task", "account", "partition", "qos", "constraint", "reservation",
    "export", "chdir", "test-only", "clusters", "wait",
})  # fmt: skip
Minutes = Annotated[int, BeforeValidator(_minutes), Field(ge=1)]


def check_sbatch_options(names: Iterable[str]) -> None:
    """Raises ValueError for what cannot be a long name of an sbatch option, or is decided elsewhere."""
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise ValueError(f"{name!r} is not the long name of an sbatch option, such as mail-type")
        if name.replace("_", "-") in OURS:
            raise ValueError(f"the option {name!r} of sbatch is decided elsewhere: leave it out")


class SlurmSettings(Settings):
    """Options that this site wants for its jobs."""

    partition: str | None = None
    account: str | None = Field(None, description='"required" where the site demands one and the user names it')
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    gpu_request: Literal["gres", "gpus-per-node", "none"] = "gres"
    gpu_type: str | None = Field(None, description="type in a typed request, as V100 in --gres=gpu:V100:2")
    requeue: bool = Field(True, description="whether the site lets a job be requeued")
    chain: int = Field(
        4, ge=1, le=100, description="jobs of a run, one after another, where the site does not let a job be requeued"
    )
    extra: dict[str, str | int | bool] = Field(
        default_factory=dict, description="further sbatch options, by their long names"
    )

    @model_validator(mode="after")
    def _one_line_each(self) -> Self:
        for name, value in [*self.extra.items(), *((key, getattr(self, key)) for key in type(self).model_fields)]:
            if isinstance(value, str) and not value.isprintable():
                raise ValueError(f"{name} = {value!r} holds a line end or another control character")
        check_sbatch_options(self.extra)
        return self


class NodeSettings(Settings):
    """One node, as much of it as a job may have."""

    gpus: int = Field(1, ge=0)
    gpu_model: str | None = None
    cpus: int = Field(1, ge=1)
    memory_gb: float = Field(4, gt=0)


class LimitSettings(Settings):
    """Limits of what a user may ask for here."""

    walltime: Minutes = 120
    nodes: int | None = Field(None, ge=1)
    running_jobs: int | None = Field(None, ge=1)
    queued_jobs: int | None = Field(None, ge=1)


class EnvironmentSettings(Settings):
    """Modules, lines and variables that a job needs before Python starts."""

    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    variables: dict[str, str] = Field(default_factory=dict)
    scratch: str | None = Field(None, description="fast storage; submit says where a store lies elsewhere")
    node_disk: str | None = Field(
        None, description="disk of each node itself, such as $TMPDIR: the store is copied there once, and read there"
    )
    master_suffix: str = Field("", description="appended to the first node's name for the rendezvous (JUWELS: i)")

    @model_validator(mode="after")
    def _names_of_variables(self) -> Self:
        if wrong := [name for name in self.variables if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]:
            raise ValueError(f"{wrong[0]!r} is not a name of an environment variable: use letters, digits and _")
        return self


class ClusterProfile(Settings):
    """Description of a place to train: one TOML file in slurm_templates/, or the user's own."""

    name: str
    description: str
    slurm: SlurmSettings = SlurmSettings()
    node: NodeSettings = NodeSettings()
    limits: LimitSettings = LimitSettings()
    environment: EnvironmentSettings = EnvironmentSettings()
