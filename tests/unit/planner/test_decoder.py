"""The tape keeps what autograd keeps, measured on real decoder layers of transformers with our own LoRA layers."""

from dataclasses import replace

import pytest

from planner.memory.backend import TUNEWRIGHT
from planner.memory.layers import layers_memory
from planner.memory.tape import Tape
from planner.model.spec import ModelSpec
from planner.setup import Method, TrainingSetup

LAYERS, TOKENS = 2, 128
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALLEST_COUNTED = 12_000  # bytes; below are weights' statistics, indices and rotary tables
peft_on_transformers = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def setup_for(method):
    if method is Method.FULL:
        return TrainingSetup(method, max_length=TOKENS)
    return TrainingSetup(
        method, lora_rank=8, lora_alpha=16, lora_target_modules=("all-linear",), adapter_dtype="float32",
        max_length=TOKENS,
    )  # fmt: skip


def measured_saved_bytes(config, method):
    """Bytes that autograd keeps between the forward and the backward pass, parameters excluded, per layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from worker.training.model.lora import fuse_lora_layers

    values = dict(config)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values)).bfloat16()
    trained = model
    if method is not Method.FULL:
        targets = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        trained = get_peft_model(model, targets)
        fuse_lora_layers(trained)
    trained.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in trained.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and storage.nbytes() >= SMALLEST_COUNTED:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    def run(layers):
        storages.clear()
        model.base_model.layers = layers
        model.config.num_hidden_layers = len(layers)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model.base_model(input_ids=torch.ones(1, TOKENS, dtype=torch.long), use_cache=False)
        del output
        return sum(size for size, _ in storages.values())

    every = model.base_model.layers
    return (run(every) - run(every[: LAYERS // 2])) / (LAYERS - LAYERS // 2)  # what is there once cancels out


@pytest.fixture
def one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
    yield
    torch.set_num_threads(threads)


@peft_on_transformers
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("model_type", "method"),
    [(name, Method.LORA) for name in ("llama", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3", "olmo2")]
    + [(name, Method.FULL) for name in ("mistral", "gemma3_text", "olmo2")],
)
def test_saved_bytes_are_those_that_autograd_keeps(model_type, method):
    config = {"model_type": model_type, **SHAPE}
    spec, setup = ModelSpec.from_config(config), setup_for(method)
    (_, layer), *_ = layers_memory(spec, setup, TUNEWRIGHT.profile(setup, model_type, False))
    assert layer.saved_bytes == pytest.approx(measured_saved_bytes(config, method), rel=0.03)


def test_memory_of_a_layer_grows_on_a_line_with_the_batch():
    spec = ModelSpec.from_config({"model_type": "mixtral"})
    setup = TrainingSetup(Method.QLORA, lora_rank=8, lora_target_modules=("all-linear",), max_length=64)
    setups = [replace(setup, per_device_train_batch_size=rows) for rows in (1, 2, 5)]
    one, two, five = (layers_memory(spec, sized, TUNEWRIGHT.profile(sized, "mixtral", False))[0][1] for sized in setups)
    assert five.saved_bytes == one.saved_bytes + 4 * (two.saved_bytes - one.saved_bytes)
    assert five.backward_peak_bytes > two.backward_peak_bytes > one.backward_peak_bytes


def test_quantized_experts_keep_a_16_bit_copy_of_their_weights():
    spec = ModelSpec.from_config({"model_type": "mixtral"})
    setup = TrainingSetup(Method.QLORA, lora_rank=8, lora_target_modules=("q_proj",), max_length=64)
    _, layer = layers_memory(spec, setup, TUNEWRIGHT.profile(setup, "mixtral", False))[0]
    assert layer.weight_copies_bytes == 8 * 3 * 4096 * 14336 * 2


def test_tape_frees_what_an_operation_saved_once_it_has_run_backward():
    tape = Tape()
    x = tape.tensor(10)
    y = tape.apply((x,), 20, (x,))
    z = tape.apply((y,), 40, (y,))
    assert tape.saved_bytes == 30
    # z: saved 30, gradients 40 + 20; y: saved 10, gradients 20 + 10
    assert tape.backward_bytes() == [(90, 0, 0), (40, 0, 0)]
    assert tape.backward_bytes((z,)) == [(90, 0, 40), (40, 0, 40)]


def test_residual_passes_one_gradient_to_both_sides():
    tape = Tape()
    x = tape.tensor(10)
    y = tape.apply((x,), 10)
    tape.apply((x, y), 10, shares_gradient=True)
    # the sum's gradient is shared; y's backward makes a second gradient of x, which needs a storage of its own
    assert tape.backward_bytes() == [(10, 0, 0), (20, 0, 0)]
