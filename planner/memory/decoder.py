"""One decoder layer as a tape: each operation of transformers' modelling code with what autograd keeps of it.

Sizes follow `modeling_<family>.py`. Shapes in comments: `[tokens, features]` with tokens = batch x sequence.
"""

from planner.constants import FLASH_PADDING, LONGEST_PLAIN_ATTENTION, MAX_EXPERT_CHAINS, SHORTEST_PACKED_EXAMPLE
from planner.memory.step_profile import AdapterCompute, StepProfile
from planner.memory.tape import Moment, Tape, Tensor
from planner.model.families import NormPlacement, QueryNorm
from planner.model.spec import Experts, LayerGroup, Linear, ModelSpec, is_targeted
from planner.setup import VARLEN_FLASH, InitLoraWeights, Method, TrainingSetup

FLOAT32_BYTES = 4
INDEX_BYTES = 8  # int64
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class DecoderLayer:
    """Records one layer on a tape, for one row: `layer(source)` returns its output."""

    def __init__(self, spec: ModelSpec, group: LayerGroup, setup: TrainingSetup, step: StepProfile) -> None:
        self.spec, self.group, self.setup, self.step = spec, group, setup, step
        self.tokens = setup.max_length
        self.width = DTYPE_BYTES[setup.dtype]
        self.trains_weights = setup.method is Method.FULL
        self.weight_copies_bytes = 0
        self.value_storage: Tensor = 0  # what attention keeps for its values: their own storage, or all projections'
        self.masked = step.materialises_attention_mask or (step.masks_windows and is_windowed(spec, group, self.tokens))
        self.tape = Tape()
        self.source = self.output = self.tape.tensor(self.bytes_of(spec.hidden_size))

    def moments(self) -> list[Moment]:
        """Bytes alive at each moment of the backward pass; a recomputed layer keeps its input and output throughout."""
        return self.tape.backward_bytes((self.source, self.output))

    def bytes_of(self, features: int, width: int | None = None) -> int:
        """Bytes of a `[tokens, features]` tensor."""
        return self.tokens * features * (self.width if width is None else width)

    def layer(self, x: Tensor) -> Tensor:
        """Attention and MLP with their residuals and norms."""
        placement, hidden = self.spec.family.norm_placement, self.spec.hidden_size
        for block in (self.attention, self.mlp):
            y = x if placement is NormPlacement.POST else self.norm(x, hidden)
            y = block(y)
            if placement is not NormPlacement.PRE:
                y = self.norm(y, hidden)
            x = self.tape.apply((x, y), self.bytes_of(hidden), shares_gradient=True)
        return x

    def norm(self, x: Tensor, features: int, rows_per_token: int = 1) -> Tensor:
        """RMSNorm: float32 inside, `weight * normalized` outside (LlamaRMSNorm)."""
        size, size32 = self.bytes_of(features), self.bytes_of(features, FLOAT32_BYTES)
        statistics = self.tape.tensor(self.tokens * rows_per_token * FLOAT32_BYTES)
        gradient = features // rows_per_token * self.width if self.trains_weights else 0
        if self.step.fused_norm or self.step.compiled:
            return self.tape.apply((x,), size, (x, statistics), parameter_gradient_bytes=gradient)
        x32 = x if self.width == FLOAT32_BYTES else self.tape.apply((x,), size32)
        # mean's gradient expanded, x.pow(1), 2 * x.pow(1): all alive when their product is formed (pow_backward)
        variance = self.tape.apply((x32,), self.tape.sizes[statistics], (x32,), workspace_bytes=3 * size32)
        normalized = self.tape.apply((x32, variance), size32, (x32, statistics), workspace_bytes=size32)
        if self.spec.family.float32_norm_weight:  # GemmaRMSNorm, Olmo2RMSNorm: cast last
            kept = (normalized,) if self.trains_weights else ()
            scaled = self.tape.apply((normalized,), size32, kept, parameter_gradient_bytes=gradient)
            return self.cast(scaled, size)
        narrow = self.cast(normalized, size)
        kept = (narrow,) if self.trains_weights else ()
        return self.tape.apply((narrow,), size, kept, parameter_gradient_bytes=gradient)

    def cast(self, x: Tensor, size_bytes: int) -> Tensor:
        """A change of dtype: no copy where the size stays the same."""
        return x if self.tape.sizes[x] == size_bytes else self.tape.apply((x,), size_bytes)

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        """A projection of every token, with its adapter where targeted."""
        size = self.bytes_of(linear.out_features)
        if self.trains_weights:
            return self.tape.apply((x,), size, (x,), parameter_gradient_bytes=linear.parameters * self.width)
        workspace = linear.weight_parameters * self.width if self.setup.method is Method.QLORA else 0
        adapted = is_targeted(linear.name, self.setup.lora_target_modules or ())
        if adapted and self.step.adapter_compute in (AdapterCompute.FUSED, AdapterCompute.UNSLOTH):
            return self.fused_adapter(x, size, linear, workspace)
        base = self.tape.apply((x,), size, weight_workspace_bytes=workspace)
        return self.adapter(x, base, linear) if adapted else base

    def fused_adapter(self, x: Tensor, size: int, linear: Linear, workspace: int) -> Tensor:
        """Base and adapter in one autograd function, so that no output of the adapter alone ever exists."""
        rank, width = self.setup.lora_rank or 0, DTYPE_BYTES[self.setup.adapter_dtype or "float32"]
        weights = linear.lora_parameters(rank) * width
        if self.setup.init_lora_weights is not InitLoraWeights.DEFAULT:
            rank *= 2  # what was trained, and what it started from
        dropped = (self.tape.tensor(self.tape.sizes[x]),) if self.step.lora_dropout > 0 else ()
        saves: tuple[Tensor, ...]
        if self.step.adapter_compute is AdapterCompute.UNSLOTH:
            saves = (x, *dropped)
        else:
            mask = (self.tape.tensor(self.bytes_of(linear.in_features, 1)),) if dropped else ()
            saves = (*(dropped or (x,)), *mask, self.tape.tensor(self.bytes_of(rank)))
        if self.setup.use_dora:  # the output before its rows are scaled is kept; its gradient is a tensor of that size
            saves = (*saves, self.tape.tensor(size))
            weights += linear.out_features * width
        return self.tape.apply(
            (x,),
            size,
            saves,
            parameter_gradient_bytes=weights,
            workspace_bytes=size if self.setup.use_dora else 0,
            weight_workspace_bytes=workspace,
        )

    def expert_linear(self, x: Tensor, linear: Linear, rows: float, experts: int) -> Tensor:
        """A projection of `rows` rows per token through `experts` experts' weights."""
        size = int(self.bytes_of(linear.out_features) * rows)
        weights = experts * linear.weight_parameters * self.width
        if self.trains_weights:
            return self.tape.apply((x,), size, (x,), parameter_gradient_bytes=weights)
        quantized = self.setup.method is Method.QLORA
        adapted = is_targeted(f"experts.{linear.name}", self.setup.lora_target_modules or ())
        if not adapted and (self.step.sequential_experts or not quantized):
            return self.tape.apply(
                (x,), size, weight_workspace_bytes=linear.weight_parameters * self.width if quantized else 0
            )
        # The product keeps the 16-bit weights, whether dequantized or merged with the adapter (PEFT's ParamWrapper);
        # an adapter's gradient passes through a gradient of the merged weights.
        merged = self.tape.weight(weights)
        self.weight_copies_bytes += weights
        if not adapted:
            return self.tape.apply((x,), size, (merged,))
        adapters = experts * linear.lora_parameters(self.setup.lora_rank or 0)
        gradient = adapters * DTYPE_BYTES[self.setup.adapter_dtype or "float32"]
        return self.tape.apply(
            (x,), size, (x, merged), weight_workspace_bytes=weights, parameter_gradient_bytes=gradient
        )

    def adapter(self, x: Tensor, base: Tensor, linear: Linear) -> Tensor:
        """`base + B(A(dropout(x))) * scaling` (peft/tuners/lora/layer.py, Linear.forward)."""
        rank = self.setup.lora_rank or 0
        adapter_width = DTYPE_BYTES[self.setup.adapter_dtype or "float32"]
        compute = self.width if self.step.adapter_compute is not AdapterCompute.CAST else adapter_width
        weights = linear.lora_parameters(rank) * adapter_width
        dropout = self.step.lora_dropout > 0
        y = self.cast(x, self.bytes_of(linear.in_features, compute))
        if dropout:
            mask = self.tape.tensor(self.bytes_of(linear.in_features, 1))  # one byte an element
            y = self.tape.apply((y,), self.tape.sizes[y], (mask,))
        weight_cast = self.tape.weight(linear.lora_parameters(rank) * compute if compute != adapter_width else 0)
        low = self.tape.apply((y,), self.bytes_of(rank, compute), (y, weight_cast), parameter_gradient_bytes=weights)
        high = self.tape.apply((low,), self.bytes_of(linear.out_features, compute), (low,))
        scaled = self.tape.apply((high,), self.tape.sizes[high])
        total = self.tape.apply(
            (base, scaled), max(self.tape.sizes[base], self.tape.sizes[scaled]), shares_gradient=True
        )
        return self.cast(total, self.tape.sizes[base])

    def attention(self, x: Tensor) -> Tensor:
        """Projections, rotary embedding, scaled dot product, output projection."""
        query_width = self.spec.num_attention_heads * self.spec.head_dim
        key_value_width = self.spec.num_key_value_heads * self.spec.head_dim
        query, key, value = self.queries_keys_values(x, query_width, key_value_width)
        query, key = self.query_norms(query, key, query_width, key_value_width)
        query, key = self.rotary(query), self.rotary(key)
        materialised = self.setup.attn_implementation == "eager" or self.spec.family.eager_attention_only
        # One shared head is repeated as a view, which only eager products copy.
        copies = self.spec.num_key_value_heads > 1 or self.setup.attn_implementation == "eager"
        repeats = self.step.repeats_key_values or self.masked or materialised
        if repeats and copies and key_value_width != query_width:
            key = self.tape.apply((key,), self.bytes_of(query_width))
            value = self.value_storage = self.tape.apply((value,), self.bytes_of(query_width))
        if materialised:
            mixed = self.eager_scores(query, key, value, query_width)
        elif self.step.is_varlen and self.tokens <= LONGEST_PLAIN_ATTENTION:
            mixed = self.plain_products(query, key, value, query_width, key_value_width)
        else:
            mixed = self.fused_attention(query, key, value, query_width)
            if self.spec.family.fused_projections and not self.step.is_varlen:
                # torch.cat of Phi's rotary embedding puts heads before tokens, and so does the kernel then
                mixed = self.tape.apply((mixed,), self.bytes_of(query_width))
        return self.linear(mixed, self.named("o_proj"))

    def fused_attention(self, query: Tensor, key: Tensor, value: Tensor, query_width: int) -> Tensor:
        """FlashAttention and SDPA's kernels keep their inputs, their output and one log-sum per row and head."""
        log_sum = self.tape.tensor(self.tokens * self.spec.num_attention_heads * FLOAT32_BYTES)
        saves: tuple[Tensor, ...] = (query, key, self.value_storage, log_sum)
        if self.masked and not self.step.compiled:
            saves = (*saves, self.tape.tensor(self.tokens * self.tokens * self.width))
        # FlashAttention-2 accumulates the query gradient in float32 (flash_bwd: dq_accum).
        workspace = self.bytes_of(query_width, FLOAT32_BYTES)
        if self.setup.attn_implementation == VARLEN_FLASH:  # for whole tiles, with room between examples; and softmax_d
            examples = -(-self.tokens // SHORTEST_PACKED_EXAMPLE) if self.setup.packing else 1
            rows = self.tokens + examples * FLASH_PADDING
            workspace = rows * self.spec.num_attention_heads * (padded_head(self.spec.head_dim) + 1) * FLOAT32_BYTES
        if self.tape.sizes[key] != self.tape.sizes[query]:  # and key and value gradients per query head (mha_bwd)
            workspace += 2 * self.bytes_of(query_width)
        size = self.bytes_of(query_width)
        return self.tape.apply((query, key, value), size, saves, saves_output=True, workspace_bytes=workspace)

    def plain_products(
        self, query: Tensor, key: Tensor, value: Tensor, query_width: int, key_value_width: int
    ) -> Tensor:
        """Our attention on a CPU: examples padded to the longest, two batched products."""
        padded = [
            self.tape.apply((tensor,), self.bytes_of(width), (tensor,))  # index_copy keeps its source
            for tensor, width in ((query, query_width), (key, key_value_width), (value, key_value_width))
        ]
        scores_size = self.spec.num_attention_heads * self.tokens * self.tokens * self.width
        scores = self.tape.apply((padded[0], padded[1]), scores_size, (padded[0], padded[1]))
        weights = self.tape.apply((scores,), scores_size, saves_output=True)
        mixed = self.tape.apply((weights, padded[2]), self.bytes_of(query_width), (weights, padded[2]))
        return self.tape.apply((mixed,), self.bytes_of(query_width))

    def queries_keys_values(self, x: Tensor, query_width: int, key_value_width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The three projections, or views of one fused projection."""
        if not self.spec.family.fused_projections:
            query, key, value = (self.linear(x, self.named(name)) for name in ("q_proj", "k_proj", "v_proj"))
            self.value_storage = value
            return query, key, value
        # Slices share the fused storage; their gradients are padded back into one of its size.
        fused = self.value_storage = self.linear(x, self.named("qkv_proj"))
        value = self.tape.apply((fused,), self.bytes_of(key_value_width))
        query = self.tape.apply((fused,), self.bytes_of(query_width))
        key = self.tape.apply((fused,), self.bytes_of(key_value_width))
        return query, key, value

    def query_norms(self, query: Tensor, key: Tensor, query_width: int, key_value_width: int) -> tuple[Tensor, Tensor]:
        """Norms over each head, or over all heads at once."""
        if self.spec.family.query_norm is QueryNorm.NONE:
            return query, key
        per_head = self.spec.family.query_norm is QueryNorm.HEAD
        query_rows = self.spec.num_attention_heads if per_head else 1
        key_rows = self.spec.num_key_value_heads if per_head else 1
        return self.norm(query, query_width, query_rows), self.norm(key, key_value_width, key_rows)

    def rotary(self, x: Tensor) -> Tensor:
        """`x * cos + rotate_half(x) * sin`; cos and sin are shared by all layers and counted once per model."""
        size = self.tape.sizes[x]
        if self.step.fused_rotary:  # in place both ways: LigerRopeFunction of liger_kernel/ops/rope.py
            return x
        return self.tape.apply((x,), size, workspace_bytes=0 if self.step.compiled else 2 * size)

    def eager_scores(self, query: Tensor, key: Tensor, value: Tensor, query_width: int) -> Tensor:
        """Materialised scores `[batch, heads, length, length]` (eager_attention_forward)."""
        elements = self.spec.num_attention_heads * self.tokens * self.tokens
        scores = self.tape.apply((query, key), elements * self.width, (query, key))
        if self.spec.family.eager_attention_only:  # tanh keeps its output
            scores = self.tape.apply((scores,), elements * self.width, saves_output=True)
        masked = self.tape.apply((scores,), elements * self.width, shares_gradient=True)
        wide = self.cast(masked, elements * FLOAT32_BYTES)
        weights = self.tape.apply((wide,), elements * FLOAT32_BYTES, saves_output=True)
        narrow = self.cast(weights, elements * self.width)
        mixed = self.tape.apply((narrow, value), self.bytes_of(query_width), (narrow, value))
        return self.tape.apply((mixed,), self.bytes_of(query_width))

    def mlp(self, x: Tensor) -> Tensor:
        """The gated MLP, or the routed experts with their shared one."""
        if self.group.experts is None:
            return self.gated(x, self.mlp_linears())
        routed = self.experts(x, self.group.experts)
        shared = self.mlp_linears()
        if not shared:
            return routed
        other = self.gated(x, shared)
        gated = self.tape.apply((other,), self.bytes_of(self.spec.hidden_size), (other,))
        return self.tape.apply((routed, gated), self.bytes_of(self.spec.hidden_size), shares_gradient=True)

    def mlp_linears(self) -> tuple[Linear, ...]:
        """The dense or shared MLP's projections."""
        return tuple(linear for linear in self.group.linears if linear.name in MLP_NAMES)

    def gated(self, x: Tensor, linears: tuple[Linear, ...]) -> Tensor:
        """`down(act(gate(x)) * up(x))`."""
        projected = [self.linear(x, linear) for linear in linears[:-1]]
        size = self.bytes_of(linears[-1].in_features)
        if self.step.fused_activation:
            # Gradients are written over what was kept: swiglu_backward, geglu_backward of liger_kernel/ops
            kept = tuple(dict.fromkeys(projected))
            return self.linear(self.tape.apply(kept, size, kept, overwrites_saved=True), linears[-1])
        product = self.activation(projected[0], projected[-1], size)
        return self.linear(product, linears[-1])

    def activation(self, gate: Tensor, up: Tensor, size: int) -> Tensor:
        """`act(gate) * up`: autograd keeps gate, activation and up, a compiled kernel recomputes the activation."""
        if self.step.compiled:
            return self.tape.apply((gate, up), size, (gate, up))
        activated = self.tape.apply((gate,), size, (gate,))
        return self.tape.apply((activated, up), size, (activated, up))

    def experts(self, x: Tensor, experts: Experts) -> Tensor:
        """Each token's rows gathered for its experts, projected, weighted by the router and added up."""
        chains = min(experts.count, MAX_EXPERT_CHAINS) if self.step.sequential_experts else 1
        outputs = tuple(self.expert_chain(x, experts, chains) for _ in range(chains))
        # One buffer for all: index_add_ passes its own gradient to every chain.
        return self.tape.apply(outputs, self.bytes_of(self.spec.hidden_size), shares_gradient=chains > 1)

    def expert_chain(self, x: Tensor, experts: Experts, chains: int) -> Tensor:
        """One of `chains` equal parts of the experts, if the router spreads its tokens evenly."""
        rows, count = experts.per_token / chains, -(-experts.count // chains)
        up, down = experts.linears
        size = int(self.bytes_of(self.spec.hidden_size) * rows)
        indices = self.tape.tensor(int(self.tokens * rows) * INDEX_BYTES)
        gathered = self.tape.apply((x,), size, (indices,))
        both = self.expert_linear(gathered, up, rows, count)
        product = self.activation(both, both, int(self.bytes_of(down.in_features) * rows))
        projected = self.expert_linear(product, down, rows, count)
        # The routing weights depend on the input, so the product keeps the experts' output for their gradient.
        if self.step.sequential_experts:
            weighted = self.tape.apply((projected,), size, (projected,), workspace_bytes=size)
            return self.tape.apply((weighted,), size, (indices,))
        wide = size // self.width * FLOAT32_BYTES  # float32 routing weights widen it (grouped_mm_experts_forward)
        weighted = self.tape.apply((projected,), wide, (projected,), workspace_bytes=wide)
        restored = self.tape.apply((weighted,), wide, (indices,))
        return self.tape.apply((restored,), self.bytes_of(self.spec.hidden_size, FLOAT32_BYTES))

    def named(self, name: str) -> Linear:
        """This layer's projection of that name."""
        return next(linear for linear in self.group.linears if linear.name == name)


def padded_head(head_dim: int) -> int:
    """Features of a head in flash attention's accumulator (flash_api.cpp, head_size_rounded)."""
    rounded = -(-head_dim // 32) * 32
    return rounded if rounded < 224 else 256


def is_windowed(spec: ModelSpec, group: LayerGroup, length: int) -> bool:
    """Whether rows of this length are cut by the window of these layers, which then takes a mask
    (masking_utils.py, `_ignore_causal_mask_sdpa`)."""
    return group.windowed and spec.sliding_window is not None and length >= spec.sliding_window


MLP_NAMES = frozenset({"gate_proj", "up_proj", "gate_up_proj", "down_proj"})
