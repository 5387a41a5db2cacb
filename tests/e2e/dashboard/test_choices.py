"""What one can choose for a new fine-tune beside the model: held-out data, what columns mean, every number."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.e2e.dashboard.test_paths import choose, write_rows
from tests.e2e.dashboard.test_quality import SHOTS
from tests.e2e.dashboard.visitor import Visitor
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service

pytestmark = pytest.mark.usefixtures("finished")  # which was paid for: there are credits


def test_held_out_rows_that_are_trained_on_too_are_told(visitor: Visitor, service: Service, tmp_path: Path) -> None:
    page = visitor.open(f"/new?model=tiny&file={service.upload(chat_rows())}&r=16")
    page.get_by_text("Held-out rows to measure on").click()
    shared = write_rows(tmp_path / "held.jsonl", [*chat_rows(3), *chat_rows(40)[36:]])
    page.get_by_label("Held-out file").set_input_files(shared)
    page.wait_for_url("**validation_file=file-*")
    expect(page.locator(".held-out .notice")).to_contain_text("3 of 7 held-out rows are trained on too (rows 1, 2, 3)")
    assert "r=16" in page.url, "what was adjusted is kept"

    page.get_by_role("link", name="Remove the held-out file").click()
    expect(page.locator(".held-out .notice")).to_have_count(0)
    page.get_by_text("Held-out rows to measure on").click()
    page.locator(".held-out .tile", has_text="held.jsonl").first.click()
    page.locator("#start-button").click()
    page.wait_for_url("**/jobs/ftjob-*")
    job = service.client.fine_tuning.jobs.retrieve(page.url.rpartition("/")[2])
    assert job.validation_file is not None


def test_columns_of_any_name_become_any_shape(visitor: Visitor, tmp_path: Path) -> None:
    rows = [{"aufgabe": f"Zähle bis {n}.", "lösung": f"Bis {n}.", "kontext 1": "Zahlen"} for n in range(8)]
    page = choose(visitor, write_rows(tmp_path / "alpaka.jsonl", rows))
    expect(page.get_by_role("status").filter(has_text="aufgabe, lösung, kontext 1")).to_be_visible()
    expect(page.locator("#step-plan")).to_be_visible()
    expect(page.get_by_text("Say first what the columns mean.")).to_be_visible()

    page.get_by_label("Rows are").select_option("alpaca")
    for role, column in (("instruction", "aufgabe"), ("output", "lösung"), ("input", "kontext 1")):
        page.locator(f"[name=column_{role}]").select_option(column)
    page.get_by_role("button", name="Use these columns").click()
    expect(page.locator(".verdict")).to_be_visible()
    page.get_by_text("What the model will read").click()
    expect(page.locator("mark").first).to_contain_text("Bis 0.")
    expect(page.locator(".rendered").first).to_contain_text("Zahlen")


def test_fields_of_the_adapter_hide_as_soon_as_none_is_trained(visitor: Visitor, service: Service) -> None:
    page = visitor.open(f"/new?model=tiny&file={service.upload(chat_rows())}")
    page.get_by_text("Adjust", exact=True).click()
    rank, epochs, method = (page.locator(f"#options [name={name}]") for name in ("r", "n_epochs", "method"))
    expect(rank).to_be_visible()
    method.select_option("full")
    expect(rank).to_be_hidden()
    expect(page.locator("#plan .verdict")).to_have_text("Full fine-tuning")
    expect(epochs).to_be_visible()
    page.screenshot(path=SHOTS / "new-full-light-desktop.png", full_page=True)
    method.select_option("lora")
    expect(rank).to_be_visible()
    rank.fill("4")
    method.select_option("full")
    expect(rank).to_be_visible()  # it is what the plan refuses
    expect(page.locator("main")).to_contain_text("Full fine-tuning trains no adapter")


def test_every_number_of_the_plan_can_be_said(visitor: Visitor, service: Service) -> None:
    page = visitor.open(f"/new?model=tiny&file={service.upload(chat_rows())}")
    page.get_by_text("Adjust", exact=True).click()
    said = {
        "r": "4",
        "lora_alpha": "12",
        "lora_dropout": "0.1",
        "target_modules": "q_proj, v_proj",
        "modules_to_save": "lm_head",
        "n_epochs": "1",
        "batch_size": "6",
        "learning_rate": "0.002",
        "warmup_ratio": "0.25",
        "weight_decay": "0.125",
        "seed": "11",
        "max_length": "96",
        "per_device_train_batch_size": "3",
        "exact_match.rows": "2",
        "exact_match.max_new_tokens": "7",
    }
    for name, value in said.items():
        page.locator(f"#options [name='{name}']").fill(value)
    chosen = {
        "priority": "economy",
        "method": "qlora",
        "use_rslora": "true",
        "use_dora": "true",
        "init_lora_weights": "olora",
        "packing": "false",
        "gradient_checkpointing": "true",
        "optim": "adamw_8bit",
        "exact_match.extract": "text",
    }
    for name, value in chosen.items():
        page.locator(f"#options [name='{name}']").select_option(value)
    expect(page.locator(".verdict")).to_contain_text("QLoRA rank 4")

    page.get_by_label("Most credits").fill("0")
    expect(page.locator("#plan").get_by_role("alert")).to_contain_text("above your max_credits of 0")
    expect(page.locator("#start-button")).to_be_disabled()
    page.get_by_label("Most credits").fill("1000")
    expect(page.locator("#start-button")).to_be_enabled()
    page.locator("#start-button").click()
    page.wait_for_url("**/jobs/ftjob-*")

    job = service.client.fine_tuning.jobs.retrieve(page.url.rpartition("/")[2])
    with service.http as http:
        plan = http.get(f"/plans/{job.model_extra['plan']}").json()
    assert job.seed == 11
    assert job.model_extra["exact_match"] == {"extract": "text", "column": None, "rows": 2, "max_new_tokens": 7}
    assert plan["adapter"] == {
        "method": "qlora",
        "r": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": True,
        "use_dora": True,
        "init_lora_weights": "olora",
        "modules_to_save": ["lm_head"],
    }
    assert plan["optimizer"] == "adamw_8bit"
    names = ("learning_rate", "warmup_ratio", "weight_decay", "max_length", "packing", "gradient_checkpointing")
    assert [plan[name] for name in names] == [0.002, 0.25, 0.125, 96, False, True]
    assert (plan["per_device_train_batch_size"], plan["gradient_accumulation_steps"]) == (3, 2)
    assert plan["hyperparameters"]["n_epochs"] == 1


def test_a_plan_follows_every_key_and_says_at_a_field_what_is_wrong_with_it(visitor: Visitor, service: Service) -> None:
    page = visitor.open(f"/new?model=tiny&file={service.upload(chat_rows())}")
    page.get_by_text("Adjust", exact=True).click()
    epochs, column = page.get_by_label("Epochs"), page.get_by_label("Compared with")
    epochs.press_sequentially("12")
    expect(page.locator("#plan")).to_contain_text("in 12 epochs")
    expect(epochs).to_be_focused()
    expect(epochs).to_have_accessible_description("Passes over the data planned: 12")
    page.wait_for_url("**n_epochs=12**")

    page.get_by_label("Exact match").select_option("last_number")
    column.fill("antwort")
    expect(column).to_have_attribute("aria-invalid", "true")
    expect(column).to_have_accessible_description(re.compile("no column 'antwort'; they have 'messages'"))
    expect(page.locator("#start-button")).to_be_disabled()
    column.fill("")
    expect(column).to_have_attribute("aria-invalid", "false")
    expect(page.locator("#start-button")).to_be_enabled()

    batch, micro = (page.locator(f"#options [name={name}]") for name in ("batch_size", "per_device_train_batch_size"))
    batch.fill("4")
    micro.fill("3")
    expect(batch).to_have_accessible_description(re.compile("Batch size 4 is not a multiple of Micro-batch size 3"))
    batch.fill("")
    micro.fill("")

    layers = page.get_by_label("Compilation")
    layers.select_option("true")
    expect(layers).to_have_accessible_description(re.compile("Compilation is for GPUs, and there is none"))
    expect(page.locator("#start-button")).to_be_disabled()
    layers.select_option("")
    expect(page.locator("#start-button")).to_be_enabled()


def test_the_quick_start_has_a_key_that_works_in_it(visitor: Visitor, service: Service, tmp_path: Path) -> None:
    page = visitor.open("/guide")
    expect(page.locator("#guide-client")).to_contain_text("tw-YOUR-KEY")
    page.get_by_role("button", name="Make a key for this").click()
    expect(page.get_by_role("status")).to_contain_text("the one time it is shown")
    text = page.locator("#guide-client").inner_text()
    assert f'base_url="{service.base_url}/v1"' in text

    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in chat_rows()))
    steps = "\n".join([text, page.locator("#guide-start_job").inner_text()]).replace('"huge"', '"tiny"')
    with (tmp_path / "train.jsonl").open("rb") as data:
        names: dict[str, object] = {"open": lambda *_: data, "print": lambda *_: None}
        exec(compile(steps, "quick start", "exec"), names)
    names["client"].close()  # type: ignore[attr-defined]
    job = service.client.fine_tuning.jobs.list(limit=1).data[0]
    assert job.id == names["job"].id  # type: ignore[attr-defined]
    service.wait(job.id, "succeeded")
    page = visitor.open("/guide")
    expect(page.locator("#guide-client")).to_contain_text("tw-YOUR-KEY")
