"""TRL's SFTTrainer and Unsloth on the workloads that our step is timed on, each at its best: the same rows, rank and
random weights, packed without padding, with flash attention (flash-attn's, or torch's own where that has no wheel),
Liger's kernels where they are installed, with checkpointing and without. Each runs in a fresh process.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gpu_check.session import Session
from bench.gpu_check.shapes import RANK, Workload, config_of, planned_setup, setup_of
from planner.devices import read_devices
from planner.errors import PlannerError
from planner.model.spec import ModelSpec
from planner.setup import Method, TrainingSetup

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
TORCH_VARLEN = "torch_varlen"  # transformers' name for torch's own flash attention, registered here
_CASE_SECONDS = 30  # below which one is not begun
_MOST_SECONDS = 120
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # all linear layers


@dataclass(frozen=True)
class Contest:
    """What one contender does."""

    name: str
    model: str
    method: str
    length: int  # tokens of a packed row
    rows: int  # per step
    checkpointing: bool
    liger: bool
    warm_steps: int
    steps: int  # timed ones
    device: str

    @property
    def is_small(self) -> bool:
        """Whether it only rehearses."""
        return self.device == "cpu"

    @property
    def config(self) -> dict[str, Any]:
        """The model's `config.json`."""
        return config_of(self.model, small=self.is_small)


def run(session: Session) -> None:
    """Every contender on LoRA, then on QLoRA."""
    from bench.gpu_check.speed import WORKLOADS, planning_device

    device = planning_device(session)
    for workload in WORKLOADS[:2]:
        try:
            setup = planned_setup(workload, device, small=session.rehearsing)
        except PlannerError as error:
            session.record(workload.name, skipped=str(error))
            continue
        for contest in contests(session, workload, setup):
            title = f"{workload.name}: {contest.name}"
            if contest.name == "unsloth" and importlib.util.find_spec("unsloth") is None:
                session.record(title, skipped="unsloth is not installed")
            elif not session.has_time(_CASE_SECONDS):
                session.record(title, skipped="its time was up")
            else:
                with session.case(title) as figures:
                    figures |= asdict(contest) | _in_fresh_process(contest)


def contests(session: Session, workload: Workload, setup: TrainingSetup) -> Iterator[Contest]:
    """The likely best first."""
    has_liger = importlib.util.find_spec("liger_kernel") is not None and not session.rehearsing
    planned = setup.gradient_checkpointing
    warm, timed = (1, 1) if session.rehearsing else (2, 4)

    def contest(name: str, checkpointing: bool, liger: bool) -> Contest:
        shape = (setup.max_length, setup.per_device_train_batch_size)
        return Contest(
            name, workload.model, str(workload.method), *shape, checkpointing, liger, warm, timed, session.device
        )

    for checkpointing in (planned, not planned):
        words = "checkpointed" if checkpointing else "not checkpointed"
        if has_liger:
            yield contest(f"trl, Liger, {words}", checkpointing, True)
        yield contest(f"trl, {words}", checkpointing, False)
    yield contest("unsloth", True, False)


def _in_fresh_process(contest: Contest) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.gpu_check.peers", json.dumps(asdict(contest))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_MOST_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{contest.name}: {done.stderr.strip()[-1500:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    return figures


def main() -> None:
    """One contender, in this process; its figures are the last line."""
    contest = Contest(**json.loads(sys.argv[1]))
    figures = train_unsloth(contest) if contest.name == "unsloth" else train_trl(contest)
    print(json.dumps(figures))


def train_trl(contest: Contest) -> dict[str, Any]:
    """TRL's trainer around plain PEFT."""
    import torch
    from peft import get_peft_model
    from transformers.utils import is_flash_attn_2_available

    from bench.random_weights import random_base
    from worker.training.model.loading import lora_config

    setup = _setup_of(contest)
    base = random_base(contest.config, setup, torch.device(contest.device))
    if is_flash_attn_2_available():
        base.set_attn_implementation("flash_attention_2")
    else:
        _register_torch_varlen(on_cpu=contest.is_small)
        base.set_attn_implementation(TORCH_VARLEN)
    return in_trainer(contest, get_peft_model(base, lora_config(base, setup)))


def train_unsloth(contest: Contest) -> dict[str, Any]:
    """The same trainer around Unsloth's model, which it loads from weights on disk."""
    from unsloth import FastLanguageModel  # isort: skip  # first: it patches the others
    import torch

    from bench.random_weights import random_base

    with tempfile.TemporaryDirectory() as directory:
        random_base(contest.config, TrainingSetup(Method.LORA), torch.device("cpu")).save_pretrained(directory)
        model, _ = FastLanguageModel.from_pretrained(
            directory, max_seq_length=contest.length, load_in_4bit=contest.method == Method.QLORA
        )
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, target_modules=list(_TARGETS), use_gradient_checkpointing="unsloth"
    )
    return in_trainer(contest, model)


def _setup_of(contest: Contest) -> TrainingSetup:
    return setup_of(Method(contest.method), contest.rows, contest.length)


def _register_torch_varlen(*, on_cpu: bool) -> None:
    """torch's flash attention for variable lengths under transformers' interface: what flash-attn would be."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    if on_cpu:
        from tests.unit.training.varlen import reference_varlen_attn as varlen_attn
    else:
        from torch.nn.attention.varlen import varlen_attn

    def attend(
        _module: Any, query: Any, key: Any, value: Any, _mask: Any, scaling: float | None = None, **lengths: Any
    ) -> tuple[Any, None]:
        flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        ends, longest = lengths["cu_seq_lens_q"], lengths["max_length_q"]
        options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0), "enable_gqa": True}
        return varlen_attn(*flat, ends, ends, longest, longest, **options).unsqueeze(0), None

    AttentionInterface.register(TORCH_VARLEN, attend)
    AttentionMaskInterface.register(TORCH_VARLEN, lambda *_args, **_options: None)


def in_trainer(contest: Contest, model: Any) -> dict[str, Any]:
    """`model` in SFTTrainer on packed random examples."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from bench.gpu_check.speed import settle
    from bench.gpu_check.training import HYPERPARAMETERS, random_examples

    wanted = (contest.warm_steps + contest.steps + 1) * contest.rows * contest.length
    data = random_examples(_setup_of(contest), int(contest.config["vocab_size"]), wanted)
    rows = [data.tokens_of(number).tolist() for number in range(len(data))]
    dataset = Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])
    ends: list[float] = []

    class Timing(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            settle()
            ends.append(time.monotonic())

    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=contest.rows,
        learning_rate=HYPERPARAMETERS.learning_rate,
        max_steps=contest.warm_steps + contest.steps,
        max_length=contest.length,
        packing=True,
        activation_checkpointing=contest.checkpointing,
        use_liger_kernel=contest.liger,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        bf16=True,
        seed=0,
        disable_tqdm=True,
        use_cpu=contest.is_small,
    )
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=_tokenizer(), callbacks=[Timing()]
    )
    filled = sum(len(row["input_ids"]) for row in trainer.train_dataset) / len(trainer.train_dataset)
    trainer.train()
    tokens = filled * contest.rows * contest.steps  # on average; what is left empty is no padding but absent
    rate = tokens / (ends[-1] - ends[contest.warm_steps - 1])
    figures: dict[str, Any] = {"tokens_per_second": round(rate)}
    if not contest.is_small:
        from bench.gpu_check.report import utilisation

        spec = ModelSpec.from_config(contest.config)
        figures["mfu"] = utilisation(spec, Method(contest.method), rate, read_devices()[0])
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    return figures


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


if __name__ == "__main__":
    main()
