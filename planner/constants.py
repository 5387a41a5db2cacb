"""Every number of the planner that is not read from a model or a device: value, unit, source.

`docs/planner.md` lists the same numbers; a test compares the two.
"""

# Sizes
NF4_BITS_PER_PARAMETER = 4  # bits; bitsandbytes packs two NF4 codes in a byte (Params4bit)
NF4_BLOCK_SIZE = 64  # weights; per 8-bit absmax: default blocksize of bitsandbytes Linear4bit
NF4_ABSMAX_BLOCK_SIZE = 256  # absmax values; per float32 scale: bitsandbytes functional.quantize_4bit
EIGHT_BIT_STATE_BLOCK_SIZE = 256  # state values; per float32 absmax: bitsandbytes Optimizer2State, block-wise
INPUT_BYTES_PER_TOKEN = 24  # bytes; input_ids, labels, attention_mask or position_ids: int64 each

# CUDA libraries
CUBLAS_WORKSPACE_BYTES = 8_519_680  # bytes; per handle: CUDABlas.cpp of torch, default :4096:2:16:8
CUBLAS_WORKSPACE_HOPPER_BYTES = 33_554_432  # bytes; per handle: CUDABlas.cpp of torch, 32 MiB from sm_90 on
CUBLAS_HANDLES = 2  # handles; the forward thread's and autograd's backward thread's
CUDA_CONTEXT_BYTES = 503_316_480  # bytes; 480 MiB: context and kernels of torch under CUDA 12, as nvidia-smi shows
CUDA_CONTEXT_HOPPER_BYTES = 629_145_600  # bytes; 600 MiB: the same on Hopper and later

# Allocator and bound
CUDA_SLACK_SHARE = 0.11  # of bytes above static; segments not given back: median of the tight published runs
CUDA_EXPANDABLE_SLACK_SHARE = 0.05  # of bytes above static; with expandable_segments, as our trainer sets: assumed half
CPU_SLACK_SHARE = 0.30  # of bytes above static; one step's fragments, oneDNN scratch: 0.29 measured (135M, 8 rows)
BOUND_SHARE = 0.035  # of device bytes; largest difference from dry runs of our own step on fake tensors
BOUND_BYTES = 134_217_728  # bytes; 128 MiB for what does not scale: streams, kernels loaded late
CPU_BOUND_SHARE = 0.10  # of device bytes; page cache and thread stacks count in a resident set too
CPU_PROCESS_BYTES = 524_288_000  # bytes; torch, transformers, peft imported: 404 to 600 MiB resident measured

# Layers
LONGEST_PLAIN_ATTENTION = 512  # tokens; up to here a CPU keeps the scores: above, they outgrow what plain products save
LONGEST_FLASH_HEAD = 256  # features; of a head that flash attention takes: flash_api.cpp of torch, mha_varlen_fwd
FLASH_PADDING = 128  # rows; per example in flash attention's backward: flash_api.cpp, mha_varlen_bwd, dq_accum
SHORTEST_PACKED_EXAMPLE = 64  # tokens; of a packed row's examples on average, for the constant above: assumed
MAX_EXPERT_CHAINS = 8  # chains; experts recorded apart; taking more of them together only rounds up
PUBLISHED_LORA_DROPOUT = 0.1  # probability; of the fms-acceleration runs: scripts/benchmarks/scenarios.yaml

# Loss
LOSS_CHUNK_BYTES = 67_108_864  # bytes; float32 logits held at a time on a CPU: chosen
LOSS_CHUNK_MINIMUM = 16  # rows; of a chunk on a CPU: chosen
CUDA_LOSS_CHUNK_BYTES = 536_870_912  # bytes; the same on a GPU, 512 MiB: 1,024 rows of 128,256 words, 768 of 152,064
CUDA_LOSS_CHUNK_MULTIPLE = 128  # rows; whole tiles of matrix kernels
CUDA_LOSS_CHUNK_MINIMUM = 512  # rows; from about 300 on a product with a 16-bit weight is bound by an H100's arithmetic
CUDA_LOSS_CHUNK_MAXIMUM = 1_024  # rows; more of them fill a GPU no better
PROOF_TOKENS = 512  # tokens; of an example that proves an export, at most: logits are whole there
TORCHTUNE_LOSS_CHUNKS = 8  # chunks; num_output_chunks of torchtune's CEWithChunkedOutputLoss

# Speed
MATRIX_UTILISATION = 0.8  # of data sheet FLOP/s; large bf16 products; with the next, 8% mean error on published speeds
ELEMENTWISE_TRAFFIC = 18.0  # bytes per kept byte; small operators, forward and backward; see the constant above
WEIGHT_COPY_TRAFFIC = 6.0  # bytes per byte; merged expert weights: written, added to, read twice, gradient twice
CPU_FLOPS_PER_CORE = 9.5e10  # FLOP/s; bf16; a 135M llama with LoRA measured 310 to 360 tokens/s on 2 cores
CPU_FLOAT32_FLOPS_PER_CORE = 4.0e10  # FLOP/s; float32 on a CPU without bfloat16: the same measurement, AVX2
CPU_EXPERTS_PENALTY = 2.0  # times; routed experts run as small products on a CPU: assumed
LAUNCH_SECONDS_PER_LAYER = 1.0e-3  # seconds; about 150 kernels a layer, forward and backward, 7 microseconds each
OPTIMIZER_PASSES = 8.0  # bytes per byte; of parameters: clip, read and write parameter, gradient, two states
PADDING_SHARE = 0.10  # of tokens; padding of batches whose rows were sorted by length: assumed
PACKING_SHARE = 0.03  # of tokens; left empty by best-fit decreasing packing: assumed
UNKNOWN_GPU_FLOPS = 1.25e14  # FLOP/s; of a GPU that is only a size: an A10's
UNKNOWN_GPU_BANDWIDTH = 6.0e11  # bytes/s; of a GPU that is only a size: an A10's
GPU_LOAD_BYTES = 1.0e9  # bytes/s; safetensors from disk to a GPU: an ordinary NVMe disk
CPU_LOAD_BYTES = 5.0e8  # bytes/s; safetensors to memory: 269 MB in 0.4 s measured, warm cache
QUANTIZE_BYTES = 1.5e9  # bytes/s; 16-bit weights that NF4 quantization takes in on a GPU: assumed
CPU_QUANTIZE_BYTES = 1.0e8  # bytes/s; the same on a CPU: assumed
PISSA_PRODUCTS = 34  # products; of a weight with rank columns: 16 iterations of two and two more, torch.svd_lowrank
CPU_PISSA_FLOPS_PER_CORE = 1.4e10  # FLOP/s; of those in float32: 14 to 22 GFLOP/s measured, 1536 x 576 to 4096 x 4096
START_SECONDS = 2.0  # seconds; claim to first step of a preloaded child, the weights apart
VERIFY_SECONDS = 8.0  # seconds; a fresh process imports torch, transformers, peft (5 to 6 s) and scores
SAMPLE_TOKENS = 96  # tokens; of a sample, at most
SAMPLE_ROWS = 4  # rows; that are sampled before and after training
ANSWERED_AT_ONCE = 8  # rows; that are answered in one batch
CPU_GENERATION_BYTES = 6.0e9  # bytes/s; weights read in one decoding step or optimizer step on 2 cores: assumed
VALIDATION_SPLIT = 0.05  # of rows; held out of a training file where nobody says how many: a twentieth, as is usual
MOST_HELD_OUT = 512  # rows; that a plan evaluates by itself: enough for the loss to be known to a few per cent
TELLING_ROWS = 20  # rows; that are evaluated; on fewer, chance moves a mean loss by more than runs differ: assumed
MOST_EVALUATIONS = 10  # passes; over the held-out set, at ends of epochs, beside the one before the first step
CREDIT_MARGIN = 0.25  # of predicted time; covered by the quote, which is a cap

# Choices
SMALLEST_RANK = 8  # rank; lowest that a plan offers by itself
LARGEST_RANK = 256  # rank; highest that a plan offers by itself
BITS_PER_ADAPTER_PARAMETER = 2.0  # bits; that a weight can hold: Allen-Zhu and Li 2024, Physics of LMs 3.3
BITS_PER_TRAINED_TOKEN = 1.0  # bits; that a token teaches: Schulman et al. 2025, LoRA Without Regret
FULL_FROM_TRAINED_TOKENS = 10_000_000  # tokens; from here LoRA falls behind: Biderman et al. 2024, LoRA Learns Less
LEARNING_RATE_AT_2000 = 5.0e-5  # rate; full fine-tuning at hidden size 2000: Schulman et al. 2025
LEARNING_RATE_EXPONENT = 0.781  # exponent; of 2000 / hidden_size on Llama models: Schulman et al. 2025
LORA_LEARNING_RATE_FACTOR = 10.0  # times; LoRA's best rate over full fine-tuning's: Schulman et al. 2025
RSLORA_ALPHA = (
    16  # alpha; with use_rslora: scale 2, as without it, at rank 64; Kalajdzievski 2023 has one for all ranks
)
LENGTH_STEP = 64  # tokens; that lengths are rounded up to: tile size of matrix kernels
PACKED_LENGTH = 2_048  # tokens; of a packed row where examples are shorter: attention still cheap
PACKED_STEPS_SHARE = 0.75  # of the steps without packing; that a packed run keeps: chosen; at a tenth one learned less
PACKED_ROWS_MINIMUM = 128  # rows; packed; below it an epoch would have too few optimizer steps
ROWS_PER_STEP_SHARE = 16  # steps; that an epoch has at least, where the rows suffice
SATURATING_TOKENS = 8_192  # tokens; of a micro-batch; more of them fill a GPU no better
TIME_TOLERANCE = 0.01  # of the time; within which two runs count as equally fast

# What fits
SMALL_JOB_EXAMPLES = 500  # rows; of the small typical job that a model's time is told by: chosen
SMALL_JOB_TOKENS = 256  # tokens; of each of them: chosen
SMALL_JOB_EPOCHS = 3  # passes; over them: OpenAI's usual number
USEFUL_SECONDS = 43_200  # seconds; a model fits where that job ends overnight, in twelve hours: chosen
