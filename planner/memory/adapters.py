"""What is trained beside a frozen base: adapters in the variants of LoRA, and modules trained whole."""

from typing import Protocol

from planner.errors import InvalidSetupError
from planner.memory.decoder import DTYPE_BYTES, FLOAT32_BYTES
from planner.model.spec import ALL_LINEAR, ModelSpec, is_targeted
from planner.setup import InitLoraWeights, Method, TrainingSetup

EMBEDDING, HEAD = "embed_tokens", "lm_head"  # by role: families that call them otherwise understand these names too
FACTORISED = frozenset({InitLoraWeights.PISSA, InitLoraWeights.OLORA})  # start at factors of the base weight


class AdapterChoice(Protocol):
    """What requests and setups alike say of an adapter."""

    @property
    def lora_dropout(self) -> float | None: ...
    @property
    def use_dora(self) -> bool | None: ...
    @property
    def init_lora_weights(self) -> InitLoraWeights | None: ...
    @property
    def modules_to_save(self) -> tuple[str, ...] | None: ...


def check_adapter(spec: ModelSpec, targets: tuple[str, ...], choice: AdapterChoice) -> None:
    """Raise InvalidSetupError for choices that contradict each other or the model, saying what to choose instead."""
    spec.check_target_modules(targets)
    _check_variant(spec, targets, choice)
    if choice.modules_to_save is not None:
        _check_whole(spec, targets, choice.modules_to_save)


def _check_variant(spec: ModelSpec, targets: tuple[str, ...], choice: AdapterChoice) -> None:
    experts = [name for name in spec.module_names() if name.startswith("experts.") and is_targeted(name, targets)]
    others = ", ".join(name for name in spec.module_names() if not name.startswith("experts."))
    variants = {"use_dora": "use_dora"} if choice.use_dora else {}
    if choice.init_lora_weights in FACTORISED:
        variants["init_lora_weights"] = f"init_lora_weights {choice.init_lora_weights}"
    if experts and choice.lora_dropout:
        raise InvalidSetupError(
            "LoRA on fused experts cannot have dropout. Set lora_dropout to 0 or name other lora_target_modules.",
            "lora_dropout",
        )
    for option, variant in variants.items():
        if experts:
            raise InvalidSetupError(
                f"{variant} is for linear layers, and the experts of {spec.model_type} are fused parameters. Leave it "
                f"out, or name lora_target_modules without experts: {others}.",
                option,
            )
        ends = [name for name in (EMBEDDING, HEAD) if name in targets]
        if ends:
            raise InvalidSetupError(
                f"{variant} is for the layers of the decoder, but lora_target_modules names {' and '.join(ends)}. "
                f"Leave it out, or train {' and '.join(ends)} whole with modules_to_save.",
                option,
            )


def _check_whole(spec: ModelSpec, targets: tuple[str, ...], modules: tuple[str, ...]) -> None:
    unknown = [name for name in modules if name not in (EMBEDDING, HEAD)]
    if unknown or not modules:
        raise InvalidSetupError(
            f"modules_to_save names {', '.join(unknown) or 'nothing'}; {EMBEDDING} and {HEAD} can be trained whole. "
            "Layers of the decoder are adapted (lora_target_modules) or trained whole by method full.",
            "modules_to_save",
        )
    adapted = [name for name in (EMBEDDING, HEAD) if name in targets]
    if adapted and (spec.tie_word_embeddings or set(adapted) & set(modules)):
        tied = f" ({HEAD} of {spec.model_type} is {EMBEDDING} itself)" if spec.tie_word_embeddings else ""
        raise InvalidSetupError(
            f"{' and '.join(adapted)} cannot be adapted and trained whole at once{tied}. "
            "Name it in lora_target_modules or in modules_to_save.",
            "modules_to_save",
        )


def adapter_parameters(spec: ModelSpec, setup: TrainingSetup) -> int:
    """Trained parameters of the adapters alone: A and B, and with DoRA one length for each row of a weight."""
    targets = setup.lora_target_modules or (ALL_LINEAR,)
    parameters = spec.lora_parameters(setup.lora_rank or 0, targets)
    return parameters + (adapted_rows(spec, setup) if setup.use_dora else 0)


def whole_parameters(spec: ModelSpec, setup: TrainingSetup) -> int:
    """Parameters of the modules that are trained whole; tied ones are one weight, whichever is named."""
    if not setup.modules_to_save:
        return 0
    return spec.embedding_parameters * (1 if spec.tie_word_embeddings else len(set(setup.modules_to_save)))


def trained_parameters(spec: ModelSpec, setup: TrainingSetup) -> int:
    """Everything that gets a gradient."""
    if setup.method is Method.FULL:
        return spec.parameters
    return adapter_parameters(spec, setup) + whole_parameters(spec, setup)


def trained_width(setup: TrainingSetup) -> int:
    """Bytes of a trained parameter."""
    return DTYPE_BYTES[setup.dtype if setup.method is Method.FULL else setup.adapter_dtype or "float32"]


def kept_bytes(spec: ModelSpec, setup: TrainingSetup, *, casts: bool = True) -> int:
    """Bytes that an adapter keeps beside its parameters: the factors it started from, to be trained away from, or else
    all factors in the base's dtype; with DoRA the squared length of every row of the base weight, in float32."""
    if setup.method is Method.FULL:
        return 0
    targets = setup.lora_target_modules or (ALL_LINEAR,)
    if setup.init_lora_weights in FACTORISED:
        kept = spec.lora_parameters(setup.lora_rank or 0, targets) * trained_width(setup)
    else:
        kept = _cast_bytes(spec, setup, targets) if casts else 0
    return kept + (adapted_rows(spec, setup) * FLOAT32_BYTES if setup.use_dora else 0)


def _cast_bytes(spec: ModelSpec, setup: TrainingSetup, targets: tuple[str, ...]) -> int:
    """The factors of all adapted linear layers, cast once before each pass (cast_together, training/model/lora.py)."""
    if (setup.adapter_dtype or "float32") == setup.dtype:
        return 0
    rank = setup.lora_rank or 0
    factors = sum(
        group.count * linear.lora_parameters(rank)
        for group in spec.groups
        for linear in group.linears
        if is_targeted(linear.name, targets)
    )
    if HEAD in targets:
        factors += rank * (spec.hidden_size + spec.vocab_size)
    return factors * DTYPE_BYTES[setup.dtype]


def adapted_rows(spec: ModelSpec, setup: TrainingSetup) -> int:
    """Output features of all adapted layers."""
    targets = setup.lora_target_modules or (ALL_LINEAR,)
    return sum(count * linear.out_features for count, linear in spec.targeted(targets))


def trains_head(spec: ModelSpec, setup: TrainingSetup) -> bool:
    """Whether the output projection's own weight gets a gradient."""
    if setup.method is Method.FULL:
        return True
    whole = setup.modules_to_save or ()
    return HEAD in whole or (spec.tie_word_embeddings and EMBEDDING in whole)


def trains_embedding(spec: ModelSpec, setup: TrainingSetup) -> bool:
    """Whether the embedding's own weight gets a gradient."""
    if setup.method is Method.FULL:
        return True
    whole = setup.modules_to_save or ()
    return EMBEDDING in whole or (spec.tie_word_embeddings and HEAD in whole)
