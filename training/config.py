"""Options of a training run: typed, documented, and validated before any work starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ase_biasgrad.architectures import check_arguments
from ase_biasgrad.bias import BiasMethod
from ase_biasgrad.data.splits import PARTS

# options of earlier versions, the value with which a configuration still means the same, and what
# says it now
RETIRED: tuple[tuple[str, str, Any, dict[str, Any]], ...] = (
    ("trainer", "cuda_graphs", False, {}),
    ("force_stage", "amsgrad", True, {"optimizer": "adamw"}),
)

# options that name files; a teacher's names do where they are checkpoints
FILES = {"data": ("path", *PARTS), "fine_tuning": ("checkpoint",)}

MAX_TEXT = 100_000  # characters of a file of options
MAX_DEPTH = 16  # of nested options


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file and option."""


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataOptions(_Options):
    """The dataset, and how it is split. The run folder records the split."""

    path: Path = Field(description="dataset file (HDF5) made by `biasgrad data …`")
    train: int | float | Path = Field(
        0.8, description="training frames: a number, a fraction of all, or a file of indices"
    )
    validation: int | float | Path = Field(0.1, description="validation frames, likewise")
    test: int | float | Path | None = Field(
        None,
        description="test frames, likewise; null: as many as for validation, or what is left; "
        "0: none",
    )
    seed: int = Field(0, ge=0, description="seed of the random split")
    contiguous: bool = Field(
        False,
        description="take blocks of consecutive frames (neighbours in a trajectory are alike)",
    )

    @field_validator(*PARTS, mode="before")
    @classmethod
    def _size(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, (str, Path)):
            return Path(value)
        optional = info.field_name == "test"
        if value is None and optional:
            return None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (value > 0 or (optional and value == 0)):
            raise ValueError("give a number of frames, their share, or a file of their indices")
        return value


class BackboneOptions(_Options):
    """The network. All other keys are its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str = Field("tensornet", description="one of those below")

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _takes_arguments(self) -> BackboneOptions:
        from ase_biasgrad.backbones import backbone_arguments, backbone_class

        check_arguments(self.name, backbone_arguments(backbone_class(self.name)), self.arguments)
        return self


class ScheduleOptions(_Options):
    """Learning rate over the steps: linear warm-up, then the schedule by name."""

    name: Literal["cosine", "plateau", "constant"] = Field(
        "cosine",
        description="cosine: down to `minimum` at the last step; plateau: a reduction whenever the "
        "validation loss has stopped falling",
    )
    warmup_steps: int = Field(500, ge=0, description="optimizer steps of linear warm-up")
    factor: float = Field(0.7, gt=0, lt=1, description="plateau: factor of a reduction")
    patience: int = Field(
        25, ge=1, description="plateau: validations without a lower loss before a reduction"
    )
    minimum: float = Field(1e-6, ge=0, description="cosine, plateau: the lowest learning rate")


class JointOptions(_Options):
    """For comparison: energies in the loss as well, centred per composition in float64."""

    energy_weight: float = Field(
        0.05,
        gt=0,
        description="weight of energy errors (unit: RMS force × 1 Å) relative to force errors",
    )


class ForceStageOptions(_Options):
    """Loss and optimizer. Errors count in units of the RMS training force."""

    epochs: int = Field(300, ge=1, description="passes over the training frames")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="minutes of training, in place of epochs; the schedule fits itself to them "
        "(also set by --minutes)",
    )
    batch_size: int = Field(10, ge=1, description="structures in a step of each process")
    loss: Literal["l1", "l2", "huber"] = Field(
        "l1",
        description="l1: length of an error; l2: its square; huber: the square up to huber_delta",
    )
    huber_delta: float = Field(
        0.05, gt=0, description="huber: length of a force error over √3, in RMS forces"
    )
    elastic_weight: float = Field(
        3.0,
        ge=0,
        description="weight of the elastic term (errors along soft directions) relative to the "
        "errors of atoms; 0: off",
    )
    stress_weight: float = Field(
        0.1,
        ge=0,
        description="weight of stress errors, in units of the RMS training stress, where there is "
        "stress; 0: off",
    )
    joint: JointOptions | None = Field(
        None, description="energies in the loss too (for comparison; no bias stage)"
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon",
        description="muon: orthogonal steps of the hidden layers' matrices, AdamW for the rest; "
        "adamw: for all, in its AMSGrad form",
    )
    learning_rate: float = Field(6e-3, gt=0, description="learning rate after warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    gradient_clip: float = Field(10.0, ge=0, description="largest norm of the gradient; 0: off")
    schedule: ScheduleOptions = Field(default_factory=ScheduleOptions)
    ema_decay: float = Field(
        0.995,
        ge=0,
        lt=1,
        description="decay per step of the averaged weights, which are validated and kept; 0: off",
    )
    early_stopping: int = Field(
        0, ge=0, description="end after so many validations without a lower loss; 0: never"
    )
    validate_every: int = Field(
        1, ge=1, description="epochs between validations; the last epoch is always validated"
    )


class BiasStageOptions(_Options):
    """The fit of the bias to energy residuals, after the force stage."""

    method: BiasMethod | Literal["auto"] = Field(
        "auto", description="auto: mean for one composition, least-squares for several"
    )
    by: str | None = Field(
        None,
        description="label of each frame's level of theory, such as source: the forces of all "
        "levels are trained on, and each level gets its own bias, a reference of that name; "
        "null: one bias for all",
    )

    @field_validator("method", mode="before")
    @classmethod
    def _without_gradient(cls, value: Any) -> Any:
        if value == "gradient":
            raise ValueError("gradient is no longer a method; use median, its exact minimum")
        return value

    @model_validator(mode="after")
    def _method_for_levels(self) -> BiasStageOptions:
        if self.by is not None and self.method == "efwt":
            raise ValueError(f"by: {self.by}: efwt fits one bias for all; choose another method")
        return self


class TrainerOptions(_Options):
    """Devices, precision, time and loggers."""

    accelerator: Literal["auto", "cpu", "cuda", "gpu"] = Field(
        "auto", description="auto: CUDA where there is one, else the CPU"
    )
    devices: int | str = Field(
        "auto", description="processes on each node, one a device; auto: all GPUs, or one CPU"
    )
    num_nodes: int = Field(1, ge=1, description="computers")
    strategy: str = Field("auto", description="Lightning's strategy for several devices: ddp, …")
    precision: Literal["float32", "float64"] = Field(
        "float32", description="of the network; positions, bias and energy sums are float64 anyway"
    )
    max_time: str | None = Field(
        None,
        pattern=r"^\d+:[0-2]?\d:[0-5]?\d:[0-5]?\d$",
        description="time limit, DD:HH:MM:SS: the force stage ends after the epoch in which it "
        "runs out; --resume gives it the same time again",
    )
    loggers: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="a list: where metrics go besides metrics.csv"
    )
    progress_bar: bool = Field(True, description="show epochs and steps in the terminal")
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest",
        description="of float32 matrix products; high: TF32, medium: bfloat16, on GPUs with them",
    )


class BaselineOptions(_Options):
    """A calculator: the network learns the difference to it. A name alone is enough."""

    calculator: str = Field(
        description="gfn2-xtb, gfn1-xtb, a name that ASE knows, or module:Class or module:function"
    )
    arguments: dict[str, Any] = Field({}, description="its keyword arguments")


class TeacherOptions(_Options):
    """Learn from a teacher: MD frames made with it, and its forces, join the training frames."""

    names: list[str] = Field(
        min_length=1,
        description="its checkpoint, several for a committee, or a calculator's name as in "
        "baseline; also set by --teacher",
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments of a calculator by name")
    frames: int = Field(2000, ge=1, description="frames to make")
    temperatures: list[float] = Field(
        [500.0], min_length=1, description="K; each gives the same share of frames"
    )
    trajectories: int = Field(
        10, ge=1, description="trajectories at each temperature, from random training frames"
    )
    interval: int = Field(20, ge=1, description="steps from one frame to the next")
    timestep: float = Field(0.5, gt=0, description="fs")
    equilibration: int = Field(200, ge=0, description="steps before the first frame")

    def record(self, teacher: Any) -> dict[str, Any]:
        """Options and teacher in JSON values, without paths of this machine."""
        names = [Path(name).name for name in self.names]
        described = {"class": f"{type(teacher).__module__}.{type(teacher).__qualname__}"}
        if hasattr(teacher, "sources"):  # checkpoints with their digests
            described["potentials"] = teacher.sources
        return {**self.model_dump(), "names": names, **described}


class FineTuningOptions(_Options):
    """Begin from the network of a checkpoint, which brings its backbone and cutoff."""

    checkpoint: Path = Field(description="the checkpoint; also set by --from")
    learning_rate: float = Field(
        1e-3, gt=0, description="learning rate after warm-up, instead of force_stage.learning_rate"
    )
    warmup_steps: int = Field(
        100, ge=0, description="steps of warm-up, instead of force_stage.schedule.warmup_steps"
    )


class TrainConfig(_Options):
    """A whole training run."""

    data: DataOptions
    backbone: BackboneOptions = Field(default_factory=BackboneOptions)
    fine_tuning: FineTuningOptions | None = None
    baseline: BaselineOptions | None = None
    teacher: TeacherOptions | None = None
    force_stage: ForceStageOptions = Field(default_factory=ForceStageOptions)
    bias_stage: BiasStageOptions = Field(default_factory=BiasStageOptions)
    trainer: TrainerOptions = Field(default_factory=TrainerOptions)
    seed: int = Field(0, ge=0, description="seed of initial weights and of the order of batches")

    @field_validator("baseline", mode="before")
    @classmethod
    def _baseline_by_name(cls, value: Any) -> Any:
        return {"calculator": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _levels_without_joint_loss(self) -> TrainConfig:
        if self.bias_stage.by is not None and self.force_stage.joint is not None:
            raise ValueError(
                "bias_stage.by: energies of several levels of theory have several zeros, and "
                "force_stage.joint would train on them as one; leave one of the two out"
            )
        return self


def load_config(
    path: str | Path,
    overrides: list[str] | tuple[str, ...] = (),
    more: dict[str, Any] | None = None,
) -> TrainConfig:
    """Read a YAML file and apply overrides such as `force_stage.epochs=50`.

    Relative paths in the file are taken from the file's folder, those in an override from the
    working folder. `more` has values by the names of options, which count last.

    Raises
    ------
    ConfigError
        Naming the file or override, the option, and what is allowed.
    """
    path = Path(path)
    options = with_files(read_options(path), lambda name: str(path.parent / name))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: write it as option=value")
        _apply(options, key, plain_yaml(value, f"override {override!r}"))
    for key, value in (more or {}).items():
        _apply(options, key, value)
    return config_from(options, str(path))


def with_files(options: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The same options with other names of files."""
    changed = dict(options)
    for group, names in FILES.items():
        if isinstance(of_group := options.get(group), dict):
            texts = {name: of_group[name] for name in names if isinstance(of_group.get(name), str)}
            changed[group] = {**of_group, **{name: change(text) for name, text in texts.items()}}
    teacher = options.get("teacher")
    if isinstance(teacher, dict) and isinstance(given := teacher.get("names"), list):
        of_teacher = [change(k) if str(k).endswith(".safetensors") else k for k in given]
        changed["teacher"] = {**teacher, "names": of_teacher}
    return changed


def read_options(path: Path) -> dict[str, Any]:
    """Options of a YAML file as they stand there.

    Raises `ConfigError` if it cannot be read, or holds no options.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    options = plain_yaml(text, str(path))
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: is not a mapping of options; see `biasgrad train --options`")
    return options


class _PlainLoader(yaml.SafeLoader):
    """Plain values: each key once, no aliases, and nothing nested deeply."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken; write the value")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key in (self.construct_object(key, deep=True) for key, _ in node.value):
            if not isinstance(key, str) or key in seen:
                raise yaml.YAMLError(f"{str(key)[:80]}: occurs twice, or is not text")
            seen.add(key)
        return super().construct_mapping(node, deep)


def plain_yaml(text: str, source: str) -> Any:
    """Value of a text of YAML that a person wrote.

    Raises `ConfigError` if it is no YAML of plain values, with `source` before the reason.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(f"{source}: {len(text)} characters; options take {MAX_TEXT} at most")
    try:
        return yaml.load(text, _PlainLoader)
    except Exception as error:  # PyYAML passes on what dates and numbers raise
        raise ConfigError(f"{source}: cannot be read as YAML: {error}") from error


def config_from(options: dict[str, Any], source: str = "configuration") -> TrainConfig:
    """Validate options at hand; errors as in `load_config`."""
    options = {key: dict(of) if isinstance(of, dict) else of for key, of in options.items()}
    for group, name, only, now in RETIRED:
        given = options.get(group)
        if isinstance(given, dict) and given.get(name) == only:
            del given[name]
            options[group] = {**now, **given}
    try:
        return TrainConfig.model_validate(options)
    except ValidationError as error:
        lines = [f"  {_complaint(item)}" for item in error.errors()]
        raise ConfigError("\n".join([f"{source}: options that cannot be used:", *lines])) from error


def _complaint(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{name}: there is no such option; `biasgrad train --options` lists them"
    value = "" if item["type"] == "missing" else f" (it is {item['input']!r})"
    return f"{name}: {item['msg'].removeprefix('Value error, ')}{value}"


def _apply(options: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if options.get(parent) is None:  # a group that is off is turned on
            options[parent] = {}
        options = options[parent]
        if not isinstance(options, dict):
            raise ConfigError(f"{key}={value}: {parent} is a value, not a group of options")
    options[last] = value


def describe_options() -> str:
    """Every option with its default and meaning, as commented YAML."""
    return "\n".join(_described(TrainConfig, 0)) + "\n"


def _described(model: type[BaseModel], depth: int) -> list[str]:
    indent = "  " * depth
    lines: list[str] = []
    for name, field in model.model_fields.items():
        nested = _options_of(field.annotation)
        if nested is not None:
            optional = field.default is None
            notes = [field.description or (nested.__doc__ or "").splitlines()[0].rstrip(".")]
            notes += ["null: off; else the options below"] if optional else []
            lines += [f"{indent}{name}:{' null' if optional else ''}  # {'; '.join(notes)}"]
            below = _described(nested, depth + 1)
            lines += [f"{'  ' * depth}  # {line.strip()}" for line in below] if optional else below
            continue
        default = (
            "<required>" if field.is_required() else yaml.safe_dump(field.default).split("\n")[0]
        )
        notes = [field.description] if field.description else []
        if choices := _choices(field.annotation):
            notes += ["one of " + ", ".join(choices)]
        lines.append(f"{indent}{name}: {default}{'  # ' if notes else ''}{'; '.join(notes)}")
    if model is BackboneOptions:
        lines += [f"{indent}# {line}" for line in _backbones()]
    return lines


def _backbones() -> list[str]:
    """Arguments of each backbone with defaults; its docstring explains them."""
    from ase_biasgrad.backbones import BACKBONES, backbone_arguments

    return [
        f"{cls.name} takes "
        + ", ".join(f"{name}: {value}" for name, value in backbone_arguments(cls).items())
        for cls in BACKBONES
    ]


def _options_of(annotation: Any) -> type[BaseModel] | None:
    """The group of options that a field holds, optional ones included."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _choices(annotation: Any) -> list[str]:
    """The names that a field allows, wherever they stand in its type."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(value) for value in inner]
    return [name for kind in inner for name in _choices(kind)]
