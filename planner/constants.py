"""Every number of the planner that is not read from a model or a device: name, value, unit, source.

`docs/planner.md` lists the same numbers with their derivations; a test compares the two.
"""

# --- Sizes ---------------------------------------------------------------------------------------------------------
NF4_BITS_PER_PARAMETER = 4.0  # bits; bitsandbytes Params4bit packs two weights in a byte
NF4_BLOCK_SIZE = 64  # weights per absmax; bitsandbytes Linear4bit default blocksize
NF4_ABSMAX_BLOCK_SIZE = 256  # absmax values per second-level scale; bitsandbytes functional.quantize_4bit
EIGHT_BIT_STATE_BLOCK_SIZE = 256  # state values per float32 absmax; bitsandbytes Optimizer2State block-wise
EIGHT_BIT_STATE_MINIMUM = 4096  # elements; bitsandbytes keeps smaller tensors' state in float32
INPUT_BYTES_PER_TOKEN = 24  # bytes; input_ids, labels and attention_mask or position_ids, int64 each

# --- CUDA libraries ------------------------------------------------------------------------------------------------
CUBLAS_WORKSPACE_BYTES = 8_519_680  # bytes per handle; torch/cuda CUDABlas.cpp default ":4096:2:16:8"
CUBLAS_WORKSPACE_HOPPER_BYTES = 33_554_432  # bytes per handle; torch/cuda CUDABlas.cpp, 32 MiB from sm_90 on
CUBLAS_HANDLES = 2  # one for the forward thread, one for autograd's backward thread
CUDA_CONTEXT_BYTES = 503_316_480  # bytes; driver context and loaded kernels, 480 MiB on Ampere, CUDA 12
CUDA_CONTEXT_HOPPER_BYTES = 629_145_600  # bytes; 600 MiB on Hopper and later, CUDA 12

# --- Allocator and bound -------------------------------------------------------------------------------------------
CUDA_SLACK_SHARE = 0.11  # of the bytes above the static part; segments that the caching allocator cannot return
CUDA_EXPANDABLE_SLACK_SHARE = (
    0.05  # of the same, with expandable_segments, as our own trainer sets; 2 MiB pages are returned
)
CPU_SLACK_SHARE = 0.15  # of the bytes above the static part; heap pages that glibc keeps or has fragmented
BOUND_SHARE = 0.03  # of the predicted peak; the largest shortfall of the estimate over the published runs, rounded up
BOUND_BYTES = 134_217_728  # bytes; 128 MiB for what does not scale: streams, kernels loaded late, small tensors
CPU_BOUND_SHARE = 0.10  # of the predicted peak; the resident set also counts page cache and thread stacks

# --- CPU -----------------------------------------------------------------------------------------------------------
CPU_PROCESS_BYTES = 629_145_600  # bytes; resident set after importing torch, transformers and peft, measured 450-600 MB

# --- Loss ----------------------------------------------------------------------------------------------------------
LOSS_CHUNK_BYTES = 67_108_864  # bytes of float32 logits that our own loss holds at a time; worker/training/loss.py
LOSS_CHUNK_MINIMUM = 16  # rows; worker/training/loss.py, _chunk_rows
TORCHTUNE_LOSS_CHUNKS = 8  # torchtune CEWithChunkedOutputLoss default num_output_chunks

# --- Speed ---------------------------------------------------------------------------------------------------------
MATRIX_UTILISATION = 0.8  # of the data sheet's dense bf16 rate that large matrix products reach
ELEMENTWISE_TRAFFIC = (
    18.0  # bytes moved per byte that a layer keeps, over forward and backward of all its small operators
)
WEIGHT_COPY_TRAFFIC = (
    6.0  # bytes moved per byte of merged expert weights: written, added to, read twice, its gradient twice
)
CPU_FLOPS_PER_CORE = 1.1e11  # bf16 FLOP/s that a step sustains on one core; 135M llama at 310-460 tokens/s on 2 cores
CPU_EXPERTS_PENALTY = 2.0  # routed experts run as small products on a CPU
LAUNCH_SECONDS_PER_LAYER = 1.0e-3  # kernel launches of one layer's forward and backward from Python
OPTIMIZER_PASSES = 8.0  # bytes moved per byte of parameter and state by one fused AdamW step, clipping included
PADDING_SHARE = 0.10  # of a padded batch's tokens, rows being sorted by length within a step
PACKING_SHARE = 0.03  # of a packed row left empty by best-fit decreasing
UNKNOWN_GPU_FLOPS = 1.25e14  # bf16 FLOP/s assumed of a GPU that is only a size; an A10's
UNKNOWN_GPU_BANDWIDTH = 6.0e11  # bytes/s, likewise
GPU_LOAD_BYTES = 1.0e9  # bytes/s at which safetensors reach a device
CPU_LOAD_BYTES = 5.0e8  # bytes/s at which safetensors reach memory, page faults included
QUANTIZE_BYTES = 1.5e9  # 16-bit bytes/s that NF4 quantization takes in on a GPU
CPU_QUANTIZE_BYTES = 1.0e8  # likewise on a CPU
START_SECONDS = 2.0  # from the claim to the first step of a preloaded child, apart from the weights
VERIFY_SECONDS = 8.0  # a fresh process that imports torch, transformers and peft and scores the export
SAMPLE_TOKENS = 96  # generated per sample; worker/training/sampling.py
CPU_GENERATION_BYTES = 6.0e9  # bytes/s of weights that one decoding step reads per core pair
EVALUATIONS = 5  # passes over the held-out set: before, about three times during, after
CREDIT_MARGIN = 0.25  # of the predicted time, added to the quote, which is a cap

# --- Choices -------------------------------------------------------------------------------------------------------
SMALLEST_RANK = 8  # lowest rank a plan offers by itself
LARGEST_RANK = 256  # highest rank a plan offers by itself
BITS_PER_ADAPTER_PARAMETER = 2.0  # bits that a weight can hold; Allen-Zhu & Li 2024
BITS_PER_TRAINED_TOKEN = 1.0  # bits that a token of a fine-tuning set teaches; Schulman et al. 2025
FULL_FROM_TRAINED_TOKENS = 10_000_000  # trained tokens from which full fine-tuning is worth its memory
LEARNING_RATE_AT_2000 = 5.0e-5  # full fine-tuning of a model of hidden size 2000; Schulman et al. 2025
LEARNING_RATE_EXPONENT = 0.781  # of 2000 / hidden_size, fitted on Llama models; Schulman et al. 2025
LORA_LEARNING_RATE_FACTOR = 10.0  # LoRA's best rate over full fine-tuning's; Schulman et al. 2025
LENGTH_STEP = 64  # tokens that lengths are rounded up to
PACKED_LENGTH = 2048  # tokens of a packed row where examples are shorter
PACKED_ROWS_MINIMUM = 128  # packed rows below which an epoch would have too few steps
ROWS_PER_STEP_SHARE = 16  # steps that an epoch should have at least, where rows allow
SATURATING_TOKENS = 8_192  # tokens of a micro-batch beyond which a larger one gains nothing
TIME_TOLERANCE = 0.01  # share of the time within which two runs count as equally fast
