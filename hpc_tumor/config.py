"""Frozen, validated settings: what to run (`Experiment`) and where (`ClusterProfile`).

Invalid values are refused at construction, with the setting, the value and the allowed values in the message.
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
    "classification": ("by-patient", "deduplicated", "published"),
    "segmentation": ("by-patient", "published"),
}
CLASSIFICATION_SIZE = 128  # pixels per side for training, in the published study
LOSSES: dict[str, tuple[str, ...]] = {
    "classification": ("cross-entropy", "focal"),
    "segmentation": ("bce", "dice-bce", "dice-ce", "focal"),
}
# Validation scores to maximise, and loss to minimise. Not voxel accuracy: as most voxels are background, it is high for
# an empty prediction.
BEST_BY = {
    "classification": r"loss|accuracy|confidence|balanced_accuracy|mcc|(precision|recall|f1)(_[\w-]+)?",
    "segmentation": r"loss|(dice|iou|precision|recall)(_(NCR|ED|ET|WT|TC))?",
}
ALLOWED_BEST_BY = {
    "classification": "loss, accuracy, confidence, balanced_accuracy, mcc, precision, recall or f1; the last three also"
    " for one class (recall_glioma)",
    "segmentation": "loss, dice, iou, precision or recall; all but loss also for NCR, ED, ET, WT or TC (dice_WT)",
}
_EXCLUSIVE = {"split_file": ("split", "fold", "conflicts", "test_source"), "test_source": ("split", "fold")}
OUTPUTS = {"classification": 4, "segmentation": 3}  # classes; labels NCR/NET, ED and ET


class ModelSettings(Settings):
    """The network."""

    name: str = Field(description="name of the network")
    filters: int | None = Field(
        None, ge=1, le=1024, description="filters of a U-Net's first level; absent: the published 32"
    )


class DataSettings(Settings):
    """The store and its split."""

    store: Path = Field(description="Zarr store created by prepare-data")
    split: str | None = Field(None, description="by-patient, deduplicated or published; absent: the task's default")
    split_file: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None, description="split file created by `hpc-tumor split`, instead of `split` and `fold`"
    )
    conflicts: Literal["exclude", "keep"] | None = Field(
        None,
        description="images with a contradicted class: exclude or keep; absent: keep in the published split only",
    )
    test_source: str | None = Field(None, description="source of the images to test on; those of the others train")
    fold: int | None = Field(None, ge=0, description="index of the test fold, from 0; absent: a single split")
    split_seed: int = Field(
        0, ge=0, lt=2**31, description="seed of the split only, so that runs with different seeds test the same cases"
    )
    folds: int = Field(5, ge=2, le=100, description="number of folds, used with `fold`")
    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="fraction of the training cases used for validation, to choose the best epoch"
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description="fraction of the cases used for testing")
    slices: float = Field(
        0.5, gt=0, le=1, description="central fraction of a case's axial slices to use; the published study uses 0.5"
    )
    keep: Literal["auto", "gpu", "host", "none"] = Field(
        "auto",
        description="memory that keeps training and validation samples after the first epoch; auto: GPU memory if they"
        " fit, else host memory (one copy per node), else none",
    )
    keep_gb: float | None = Field(
        None, gt=0, description="memory limit of `keep`; absent: 40 % of GPU memory, half of the node's free memory"
    )
    image_size: int | None = Field(
        None,
        ge=16,
        le=2048,
        description="side length of training images in pixels; absent: 128 for classification, as stored for"
        " segmentation",
    )


def _weights(value: Any) -> Any:
    """Parse weights: a list from a file, or comma-separated text such as `1,2,3`."""
    if value is None or value == "balanced":
        return value
    numbers = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(float(number) for number in numbers)
    except (TypeError, ValueError):
        raise ValueError("give balanced or comma-separated numbers, such as 1,2,0.5") from None


class Recipe(Settings):
    """Training settings."""

    epochs: int = Field(20, ge=1, le=100_000)
    batch_size: int = Field(32, ge=1, le=65_536, description="global batch size, divided among the ranks")
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0, le=10)
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 penalty for adam and sgd, decoupled for adamw")
    schedule: Literal["none", "step", "exponential", "cosine", "polynomial"] = Field(
        "none",
        description="learning-rate schedule; step and exponential change the rate every epoch, cosine and polynomial"
        " every step",
    )
    step_epochs: int = Field(10, ge=1, description="epochs between two changes of the step schedule")
    gamma: float = Field(0.5, gt=0, le=1, description="factor of the step and exponential schedules")
    power: float = Field(0.9, gt=0, le=10, description="exponent of the polynomial schedule, (1 - progress) ** power")
    warmup_epochs: float = Field(0, ge=0, description="epochs of linear warm-up to the schedule's learning rate")
    augment: bool = Field(
        False, description="data augmentation: the published one for images; flips, rotation, scaling … for slices"
    )
    loss: str | None = Field(
        None,
        description="cross-entropy or focal for classification; bce, dice-bce, dice-ce or focal for segmentation;"
        " absent: the task's published loss",
    )
    class_weights: Annotated[Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(_weights)] = Field(
        None,
        description="loss weight of each class or label (NCR/NET, ED, ET), comma-separated; balanced: by inverse"
        " frequency",
    )
    focal_gamma: float = Field(2.0, ge=0, le=10, description="focusing parameter of the focal loss")
    clip_gradients: float | None = Field(None, gt=0, description="maximum norm of all gradients together")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay per step of an exponential moving average of the weights, which is scored"
    )
    early_stopping: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better validation score"
    )
    skip_nonfinite: int = Field(
        0, ge=0, description="maximum number of steps with non-finite loss or gradients in a run; they are skipped"
    )


class HardwareSettings(Settings):
    """Ranks, precision and speed."""

    gpus: int = Field(1, ge=1, le=4096, description="number of ranks: one per GPU, or CPU processes without a GPU")
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    channels_last: Literal["auto", True, False] = Field(
        "auto", description="memory layout of images; auto: channels-last on GPUs, the faster one on CPUs"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: for networks and devices on which it was measured to be faster"
    )
    graph: Literal["auto", "on", "off"] = Field(
        "auto", description="replay each training step as one CUDA graph, with the same results; auto: on NVIDIA GPUs"
    )
    accumulate: int = Field(
        1, ge=1, le=4096, description="micro-batches per rank and batch (gradient accumulation), to reduce memory use"
    )
    deterministic: bool = Field(False, description="bitwise reproducible runs, slower on GPUs")
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads per rank; absent: the node's available CPUs divided by its ranks, or one per core if"
        " that is faster",
    )
    timeout_minutes: float = Field(
        15, gt=0, description="minutes without progress after which a rank is considered hung and the run ends"
    )


class ScoringSettings(Settings):
    """Settings of the final test. Validation during training does not use them."""

    flips: bool = Field(False, description="test-time augmentation: average the logits over flips of each sample")
    clean: bool = Field(
        False,
        description="remove small components of predicted tumour, and enhancing tumour below a volume; both thresholds"
        " are chosen on the validation patients",
    )


class Experiment(Settings):
    """All settings of one run."""

    model: ModelSettings
    data: DataSettings
    recipe: Recipe = Recipe()
    hardware: HardwareSettings = HardwareSettings()
    scoring: ScoringSettings = ScoringSettings()
    seed: int = Field(0, ge=0, lt=2**31)
    task: Task
    limit_batches: int | None = Field(None, ge=1, description="maximum batches per epoch and split part, for debugging")
    checkpoint_minutes: float = Field(
        10,
        gt=0,
        description="maximum minutes between two checkpoints; sooner, from a minute on, if they cost below 5 % of the"
        " time",
    )
    keep_every: int | None = Field(None, ge=1, description="keep the checkpoint of every n-th epoch permanently")
    best_by: str | None = Field(
        None, description="validation score (or loss) that chooses the best epoch; absent: dice or accuracy"
    )
    profile: bool = Field(False, description="write a profiler trace of a few steps, for Perfetto or chrome://tracing")
    tensorboard: bool = Field(
        False, description="also write the metrics for TensorBoard; needs the extra `tensorboard`"
    )

    @model_validator(mode="after")
    def _choices_of_the_task(self) -> Self:
        for name, value, allowed in (
            ("data.split", self.data.split, SPLITS[self.task]),
            ("recipe.loss", self.recipe.loss, LOSSES[self.task]),
        ):
            if value is not None and value not in allowed:
                raise SettingError(name, f"= {value!r} is not for {self.task}: choose {series(allowed, 'or')}")
        weights, outputs = self.recipe.class_weights, OUTPUTS[self.task]
        if isinstance(weights, tuple) and (len(weights) != outputs or not all(weight > 0 for weight in weights)):
            raise SettingError(
                "recipe.class_weights",
                f"= {list(weights)} does not fit {self.task}: give {outputs} numbers above 0, or balanced",
            )
        recipe = self.recipe
        if recipe.warmup_epochs >= recipe.epochs and recipe.warmup_epochs:
            raise SettingError(
                "recipe.warmup_epochs", f"= {recipe.warmup_epochs:g} of {recipe.epochs} epochs: choose fewer"
            )
        if recipe.early_stopping and not self.data.val_fraction and self.data.split_file is None:
            raise SettingError(
                "recipe.early_stopping", "needs a validation part: set data.val_fraction above 0, or leave it out"
            )
        if self.scoring.clean and (self.task != "segmentation" or not (self.data.val_fraction or self.data.split_file)):
            raise SettingError("scoring.clean", "= True needs segmentation with validation patients: set it to false")
        if self.best_by is not None and not re.fullmatch(BEST_BY[self.task], self.best_by):
            raise SettingError(
                "best_by",
                f"= {self.best_by!r} cannot choose the best epoch of {self.task}: choose {ALLOWED_BEST_BY[self.task]}",
            )
        if self.recipe.batch_size < self.hardware.gpus:
            raise SettingError(
                "recipe.batch_size",
                f"= {self.recipe.batch_size} cannot be divided among {self.hardware.gpus} GPUs:"
                " choose fewer GPUs or a larger batch",
            )
        return self

    @model_validator(mode="after")
    def _settings_of_the_split(self) -> Self:
        data = self.data
        if data.fold is not None and data.fold >= data.folds:
            raise SettingError("data.fold", f"= {data.fold} of {data.folds} folds: choose 0 to {data.folds - 1}")
        for name in ("conflicts", "test_source"):
            if (value := getattr(data, name)) is not None and self.task != "classification":
                raise SettingError(f"data.{name}", f"= {value!r} is not for {self.task}: leave it out")
        for one, other in ((one, other) for one, others in _EXCLUSIVE.items() for other in others):
            if getattr(data, one) is not None and (value := getattr(data, other)) is not None:
                raise SettingError(f"data.{other}", f"= {value!r} conflicts with data.{one}: leave out one of them")
        return self

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise UsageError if `best_by` names a class that is not in `classes`, those of the store."""
        name = (self.best_by or "").partition("_")[2] if self.best_by != "balanced_accuracy" else ""
        if classes and name and name not in classes:
            raise UsageError(f"best_by = {self.best_by!r}: no class {name!r} in the store, only {', '.join(classes)}.")

    @property
    def signature(self) -> str:
        """Hash of the non-default settings as canonical JSON, so that settings added later do not change it."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def split(self) -> str:
        """The split in use: the setting or the task's default."""
        return self.data.split or SPLITS[self.task][0]

    @property
    def loss(self) -> str:
        """The loss in use: the setting or the task's default."""
        return self.recipe.loss or LOSSES[self.task][0]

    @property
    def main_score(self) -> str:
        """The score that chooses the best epoch: the setting or the task's default."""
        return self.best_by or ("dice" if self.task == "segmentation" else "accuracy")


def _minutes(value: Any) -> Any:
    """Parse a walltime in SLURM's forms (`MM`, `HH:MM:SS`, `D-HH:MM:SS`, …) or with units (`90m`, `2h`) as minutes."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text):
        return max(1, round(float(match[1]) * {"s": 1 / 60, "m": 1, "h": 60, "d": 1440}[match[2]]))
    if (seconds := parse_seconds(text)) is not None:
        return math.ceil(seconds / 60)
    raise ValueError(f"{value!r} is not a time: write 02:00:00, 1-12:00:00, 90m or 2h")


# sbatch options that submission sets itself, such as logs, signal and array, or that have their own setting or option.
RESERVED_OPTIONS = frozenset({
    "array", "output", "error", "open-mode", "signal", "requeue", "no-requeue", "dependency", "wrap", "parsable",
    "job-name", "time", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "mem", "mem-per-cpu", "mem-per-gpu",
    "gres", "gpus", "gpus-per-node", "gpus-per-task", "account", "partition", "qos", "constraint", "reservation",
    "export", "chdir", "test-only", "clusters", "wait",
})  # fmt: skip
Minutes = Annotated[int, BeforeValidator(_minutes), Field(ge=1)]


def check_sbatch_options(names: Iterable[str]) -> None:
    """Raise ValueError for a name that is not a long sbatch option, or is reserved."""
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise ValueError(f"{name!r} is not the long name of an sbatch option, such as mail-type")
        if name.replace("_", "-") in RESERVED_OPTIONS:
            raise ValueError(f"the sbatch option {name!r} is set by hpc-tumor: leave it out")


class SlurmSettings(Settings):
    """SLURM options of the site."""

    partition: str | None = None
    account: str | None = Field(None, description='account to charge; "required" if each user must name one')
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    gpu_request: Literal["gres", "gpus-per-node", "none"] = "gres"
    gpu_type: str | None = Field(None, description="GPU type in a typed request, as V100 in --gres=gpu:V100:2")
    requeue: bool = Field(True, description="whether the site allows jobs to be requeued")
    chain: int = Field(4, ge=1, le=100, description="length of a run's chain of jobs, used if requeue is false")
    extra: dict[str, str | int | bool] = Field(
        default_factory=dict, description="further sbatch options, by their long names"
    )

    @model_validator(mode="after")
    def _one_line_each(self) -> Self:
        for name, value in [*self.extra.items(), *((key, getattr(self, key)) for key in type(self).model_fields)]:
            if isinstance(value, str) and not value.isprintable():
                raise ValueError(f"{name} = {value!r} contains a line break or another control character")
        check_sbatch_options(self.extra)
        return self


class NodeSettings(Settings):
    """Resources of one node that a job may use."""

    gpus: int = Field(1, ge=0)
    gpu_model: str | None = None
    gpu_memory_gb: float | None = Field(None, gt=0, description="memory of one GPU, needed to share it (--share-gpu)")
    cpus: int = Field(1, ge=1)
    memory_gb: float = Field(4, gt=0)


class LimitSettings(Settings):
    """Limits of a user's requests."""

    walltime: Minutes = 120
    nodes: int | None = Field(None, ge=1)
    running_jobs: int | None = Field(None, ge=1)
    queued_jobs: int | None = Field(None, ge=1)


class EnvironmentSettings(Settings):
    """Modules, shell lines and variables of a job before Python starts."""

    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    variables: dict[str, str] = Field(default_factory=dict)
    scratch: str | None = Field(None, description="fast storage; submit warns about stores elsewhere")
    node_disk: str | None = Field(
        None, description="local disk of a node, such as $TMPDIR; the store is copied to it and read there"
    )
    master_suffix: str = Field("", description="appended to the first node's name for the rendezvous (JUWELS: i)")

    @model_validator(mode="after")
    def _names_of_variables(self) -> Self:
        if wrong := [name for name in self.variables if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]:
            raise ValueError(f"{wrong[0]!r} is not a valid name of an environment variable: use letters, digits and _")
        return self


class ClusterProfile(Settings):
    """Cluster profile: a TOML file in slurm_templates/, or the user's own."""

    name: str
    description: str
    slurm: SlurmSettings = SlurmSettings()
    node: NodeSettings = NodeSettings()
    limits: LimitSettings = LimitSettings()
    environment: EnvironmentSettings = EnvironmentSettings()
