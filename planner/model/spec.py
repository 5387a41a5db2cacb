"""A model as the planner sees it: every parameter, by role, from its `config.json` alone."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from planner.errors import InvalidConfigurationError, InvalidSetupError, UnsupportedArchitectureError
from planner.model.families import FAMILIES, Family, NormPlacement, QueryNorm

EXPERT_COUNTS = ("num_experts", "num_local_experts")  # transformers 5 writes either, whatever the hub's file has
ALL_LINEAR = "all-linear"  # PEFT's word for every decoder-layer linear; here it includes experts


@dataclass(frozen=True)
class Linear:
    """A projection `[in_features] -> [out_features]`, named as the module is in transformers."""

    name: str
    in_features: int
    out_features: int
    bias: bool = False

    @property
    def weight_parameters(self) -> int:
        """Parameters of the weight alone: what NF4 stores in 4 bits."""
        return self.in_features * self.out_features

    @property
    def parameters(self) -> int:
        """Weight and bias."""
        return self.weight_parameters + (self.out_features if self.bias else 0)

    def lora_parameters(self, rank: int) -> int:
        """A `[rank, in]` and a `[out, rank]` matrix (Hu et al. 2021, section 4.1)."""
        return rank * (self.in_features + self.out_features)


@dataclass(frozen=True)
class Experts:
    """Routed experts, stored by transformers 5 as fused three-dimensional parameters. `linears` describe one."""

    count: int
    per_token: int
    linears: tuple[Linear, ...]

    @property
    def parameters(self) -> int:
        """Parameters of all experts of one layer."""
        return self.count * sum(linear.parameters for linear in self.linears)


@dataclass(frozen=True)
class LayerGroup:
    """`count` decoder layers of the same shape."""

    count: int
    linears: tuple[Linear, ...]  # attention first, then the dense or shared MLP
    norm_parameters: int
    experts: Experts | None = None
    router_parameters: int = 0  # gate of the experts and of the shared expert; stays 16-bit, never adapted
    windowed: bool = False  # attends within the model's sliding window only

    @property
    def parameters(self) -> int:
        """Parameters of one such layer."""
        experts = self.experts.parameters if self.experts else 0
        linears = sum(linear.parameters for linear in self.linears)
        return linears + experts + self.norm_parameters + self.router_parameters

    def quantizable_parameters(self) -> int:
        """Weights of one layer that NF4 stores in 4 bits: linears and experts, no bias, norm or router."""
        dense = sum(linear.weight_parameters for linear in self.linears)
        if self.experts is None:
            return dense
        return dense + self.experts.count * sum(linear.weight_parameters for linear in self.experts.linears)

    def active_linear_parameters(self) -> int:
        """Weights of one layer that one token is multiplied with."""
        dense = sum(linear.weight_parameters for linear in self.linears)
        if self.experts is None:
            return dense
        return dense + self.experts.per_token * sum(linear.weight_parameters for linear in self.experts.linears)


@dataclass(frozen=True)
class ModelSpec:
    """A causal language model: its shape and every parameter, by role."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    sliding_window: int | None
    tie_word_embeddings: bool
    groups: tuple[LayerGroup, ...]
    activation: str = ""  # of the gated MLP, by transformers' name; empty where it was surveyed
    other_parameters: int = 0  # outside of layers, embeddings and the final norm, in a model that was surveyed

    @property
    def is_introspected(self) -> bool:
        """Whether its numbers were read off the built model, for want of a family."""
        return self.model_type not in FAMILIES

    def __hash__(self) -> int:
        return self._hash  # specs are cache keys, and their own fields are nested deep

    @cached_property
    def _hash(self) -> int:
        return hash((self.model_type, self.parameters, self.hidden_size, self.num_hidden_layers, self.head_dim))

    @cached_property
    def family(self) -> Family:
        """How this model's family builds a layer."""
        return FAMILIES.get(self.model_type) or Family(self.model_type, {})

    @cached_property
    def embedding_parameters(self) -> int:
        """Rows of the vocabulary times the hidden size."""
        return self.vocab_size * self.hidden_size

    @property
    def lm_head_parameters(self) -> int:
        """Zero when the output projection is the embedding itself."""
        return 0 if self.tie_word_embeddings else self.embedding_parameters

    @property
    def norm_parameters(self) -> int:
        """All norms, the final one included."""
        return self.hidden_size + sum(group.count * group.norm_parameters for group in self.groups)

    @property
    def router_parameters(self) -> int:
        """Gates of experts."""
        return sum(group.count * group.router_parameters for group in self.groups)

    @property
    def has_gated_mlp(self) -> bool:
        """Whether any layer has an MLP that all tokens pass, beside experts or without."""
        return any(linear.name == "down_proj" for group in self.groups for linear in group.linears)

    @cached_property
    def expert_parameters(self) -> int:
        """All routed experts of all layers."""
        return sum(group.count * group.experts.parameters for group in self.groups if group.experts)

    @property
    def linear_parameters(self) -> int:
        """Decoder-layer linears with their biases, experts excluded."""
        return sum(group.count * linear.parameters for group in self.groups for linear in group.linears)

    @cached_property
    def parameters(self) -> int:
        """Every parameter once (a tied output projection is not counted again)."""
        layers = sum(group.count * group.parameters for group in self.groups)
        return self.embedding_parameters + self.lm_head_parameters + self.hidden_size + self.other_parameters + layers

    @cached_property
    def quantizable_parameters(self) -> int:
        """Weights that NF4 stores in 4 bits: decoder-layer linears and experts only."""
        return sum(group.count * group.quantizable_parameters() for group in self.groups)

    @cached_property
    def active_parameters(self) -> int:
        """Weights that one token is multiplied with, the output projection included and the embedding not."""
        layers = sum(group.count * group.active_linear_parameters() for group in self.groups)
        return layers + self.embedding_parameters

    @cached_property
    def largest_quantized_weight(self) -> int:
        """Elements of the largest weight that is dequantized whole for one matrix product."""
        sizes = [linear.weight_parameters for group in self.groups for linear in group.linears]
        sizes += [
            linear.weight_parameters for group in self.groups if group.experts for linear in group.experts.linears
        ]
        return max(sizes)

    def module_names(self) -> tuple[str, ...]:
        """Names that `target_modules` may use, in order of appearance; experts as `experts.<name>`."""
        names: dict[str, None] = {}
        for group in self.groups:
            names.update((linear.name, None) for linear in group.linears)
            if group.experts:
                names.update((f"experts.{linear.name}", None) for linear in group.experts.linears)
        return tuple(names)

    def lora_parameters(self, rank: int, target_modules: tuple[str, ...]) -> int:
        """Parameters of the adapters.

        `target_modules` names modules by their last part (`q_proj`, `experts.down_proj`, `lm_head`, `embed_tokens`),
        or is `("all-linear",)`: every decoder-layer linear, experts included, router and lm_head not.
        Raises InvalidSetupError for a name that the model does not have or a rank below 1.
        """
        return _lora_parameters(self, rank, target_modules)

    def targeted(self, target_modules: tuple[str, ...]) -> Iterator[tuple[int, Linear]]:
        """Each targeted decoder linear with how often the model has it (layers, times experts where routed)."""
        for group in self.groups:
            for linear in group.linears:
                if is_targeted(linear.name, target_modules):
                    yield group.count, linear
            if group.experts:
                for linear in group.experts.linears:
                    if is_targeted(f"experts.{linear.name}", target_modules):
                        yield group.count * group.experts.count, linear

    def check_target_modules(self, target_modules: tuple[str, ...]) -> None:
        """Raise InvalidSetupError for a name that the model does not have."""
        known = {*self.module_names(), "lm_head", "embed_tokens", ALL_LINEAR}
        unknown = [name for name in target_modules if name not in known]
        if unknown or not target_modules:
            names = ", ".join(sorted(known))
            raise InvalidSetupError(
                f"lora_target_modules names {', '.join(unknown) or 'nothing'}; {self.model_type} has {names}.",
                "lora_target_modules",
            )

    @staticmethod
    def from_config(config: Mapping[str, object]) -> "ModelSpec":
        """Read a parsed `config.json`; what it leaves out takes the family's defaults.

        Raises UnsupportedArchitectureError for an unknown `model_type` and InvalidConfigurationError for numbers that
        cannot belong to a model.
        """
        model_type = config.get("model_type")
        family = FAMILIES.get(str(model_type))
        if family is None:
            raise UnsupportedArchitectureError(
                f"The model's architecture is {model_type!r}, which cannot be planned yet. "
                f"Supported: {', '.join(FAMILIES)}."
            )
        stated = {key: value for key, value in config.items() if value is not None}
        if family.experts_key is not None:
            count = next((stated[name] for name in (family.experts_key, *EXPERT_COUNTS) if name in stated), None)
            stated |= {} if count is None else {family.experts_key: count}
        return _build(family, {**family.defaults, **stated})


@lru_cache(maxsize=1024)
def _lora_parameters(spec: ModelSpec, rank: int, target_modules: tuple[str, ...]) -> int:
    if rank < 1:
        raise InvalidSetupError(f"lora_rank is {rank}; it must be at least 1.", "lora_rank")
    spec.check_target_modules(target_modules)
    total = sum(count * linear.lora_parameters(rank) for count, linear in spec.targeted(target_modules))
    for name in ("lm_head", "embed_tokens"):
        if name in target_modules:
            total += rank * (spec.hidden_size + spec.vocab_size)
    return total


def is_targeted(name: str, target_modules: tuple[str, ...]) -> bool:
    """Whether a decoder module of this name gets an adapter."""
    return ALL_LINEAR in target_modules or name in target_modules


def _positive(values: Mapping[str, object], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidConfigurationError(f"config.json gives {key} = {value!r}; a positive whole number is needed.")
    return value


def _build(family: Family, values: Mapping[str, object]) -> ModelSpec:
    hidden = _positive(values, "hidden_size")
    heads = _positive(values, "num_attention_heads")
    layers = _positive(values, "num_hidden_layers")
    key_value_heads = _positive(values, "num_key_value_heads") if "num_key_value_heads" in values else heads
    head_dim = _positive(values, "head_dim") if "head_dim" in values else hidden // heads
    if heads % key_value_heads:
        raise InvalidConfigurationError(
            f"config.json gives {heads} attention heads and {key_value_heads} key/value heads; "
            "the first must be a multiple of the second."
        )
    window = values.get("sliding_window")
    groups = _layer_groups(family, values, hidden, heads * head_dim, key_value_heads * head_dim, head_dim, layers)
    has_window = isinstance(window, int) and window > 0 and any(group.windowed for group in groups)
    return ModelSpec(
        model_type=family.model_type,
        vocab_size=_positive(values, "vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        max_position_embeddings=_positive(values, "max_position_embeddings"),
        sliding_window=window if has_window and isinstance(window, int) else None,
        tie_word_embeddings=bool(values["tie_word_embeddings"]),
        groups=groups,
        activation=_activation(family, values),
    )


def _activation(family: Family, values: Mapping[str, object]) -> str:
    name = str(values.get(family.activation_key, ""))
    return "gelu_pytorch_tanh" if name == "gelu" and family.tanh_gelu else name


def _layer_groups(
    family: Family,
    values: Mapping[str, object],
    hidden: int,
    query_width: int,
    key_value_width: int,
    head_dim: int,
    layers: int,
) -> tuple[LayerGroup, ...]:
    attention = _attention_linears(family, values, hidden, query_width, key_value_width)
    norms = _norm_parameters(family, hidden, query_width, key_value_width, head_dim)
    kinds = Counter(zip(_sparse_layers(family, values, layers), _windowed_layers(family, values, layers), strict=True))
    groups = []
    for (sparse, windowed), count in sorted(kinds.items()):
        if sparse:
            group = _sparse_group(family, values, hidden, attention, norms, count)
        else:
            mlp = _mlp_linears(family, values, hidden, _positive(values, "intermediate_size"))
            group = LayerGroup(count, attention + mlp, norms)
        groups.append(replace(group, windowed=windowed))
    return tuple(groups)


def _sparse_layers(family: Family, values: Mapping[str, object], layers: int) -> list[bool]:
    """Which layers route to experts."""
    if family.experts_key is None or not family.sparse_layout:
        return [family.experts_key is not None] * layers
    dense_only = values.get("mlp_only_layers")
    dense_only = dense_only if isinstance(dense_only, list | tuple) else ()
    step = _positive(values, "decoder_sparse_step")
    return [index not in dense_only and (index + 1) % step == 0 for index in range(layers)]


def _windowed_layers(family: Family, values: Mapping[str, object], layers: int) -> list[bool]:
    """Which layers attend within `sliding_window` only (`layer_types`, or the family's own default pattern)."""
    if not family.windows or not values.get("sliding_window") or values.get("use_sliding_window") is False:
        return [False] * layers
    kinds = values.get("layer_types")
    if isinstance(kinds, list | tuple) and len(kinds) >= layers:
        return [kind != "full_attention" for kind in kinds[:layers]]
    if "use_sliding_window" in values:  # qwen: the lower layers attend fully
        first = values.get("max_window_layers")
        return [index >= (first if isinstance(first, int) else 0) for index in range(layers)]
    every = values.get("sliding_window_pattern") if family.full_attention_every else 0
    every = every if isinstance(every, int) and every > 0 else family.full_attention_every
    return [not every or (index + 1) % every != 0 for index in range(layers)]


def _attention_linears(
    family: Family, values: Mapping[str, object], hidden: int, query_width: int, key_value_width: int
) -> tuple[Linear, ...]:
    everywhere = family.attention_bias_key is not None and bool(values.get(family.attention_bias_key, False))
    by_key = family.query_bias_key is not None and bool(values.get(family.query_bias_key, False))
    on_queries = everywhere or by_key or family.query_bias
    output = Linear("o_proj", query_width, hidden, everywhere)
    if family.fused_projections:
        return (Linear("qkv_proj", hidden, query_width + 2 * key_value_width), output)
    return (
        Linear("q_proj", hidden, query_width, on_queries),
        Linear("k_proj", hidden, key_value_width, on_queries),
        Linear("v_proj", hidden, key_value_width, on_queries),
        output,
    )


def _mlp_linears(family: Family, values: Mapping[str, object], hidden: int, intermediate: int) -> tuple[Linear, ...]:
    bias = family.mlp_bias_key is not None and bool(values.get(family.mlp_bias_key, False))
    down = Linear("down_proj", intermediate, hidden, bias)
    if family.fused_projections:
        return (Linear("gate_up_proj", hidden, 2 * intermediate), down)
    return (Linear("gate_proj", hidden, intermediate, bias), Linear("up_proj", hidden, intermediate, bias), down)


def _sparse_group(
    family: Family,
    values: Mapping[str, object],
    hidden: int,
    attention: tuple[Linear, ...],
    norms: int,
    count: int,
) -> LayerGroup:
    assert family.experts_key is not None
    experts = _positive(values, family.experts_key)
    width = _positive(values, family.expert_intermediate_key)
    router = experts * hidden
    shared: tuple[Linear, ...] = ()
    if family.shared_expert:
        shared = _mlp_linears(family, values, hidden, _positive(values, "shared_expert_intermediate_size"))
        router += hidden  # the shared expert's own gate, [1, hidden]
    routed = (Linear("gate_up_proj", hidden, 2 * width), Linear("down_proj", width, hidden))
    return LayerGroup(
        count,
        attention + shared,
        norms,
        Experts(experts, _positive(values, "num_experts_per_tok"), routed),
        router,
    )


def _norm_parameters(family: Family, hidden: int, query_width: int, key_value_width: int, head_dim: int) -> int:
    around = 4 if family.norm_placement is NormPlacement.SANDWICH else 2
    if family.query_norm is QueryNorm.HEAD:
        return around * hidden + 2 * head_dim
    if family.query_norm is QueryNorm.FULL:
        return around * hidden + query_width + key_value_width
    return around * hidden
