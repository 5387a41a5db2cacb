"""Jobs and plans over the wire, with the official client wherever it has a method."""

from typing import Any

import openai
import pytest

from core.jobs import lease
from core.jobs.evaluation import HeldOut
from core.retention.jobs import expire_checkpoints
from tests.integration.api.server import Service, Tenant


def test_job_echoes_what_was_asked_and_what_was_decided(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    file_id = rich.upload(rows)

    job = rich.client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file_id,
        validation_file=rich.upload(rows[:4]),
        suffix="lamps",
        seed=42,
        metadata={"team": "support"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}},
        },
        extra_body={
            "adapter": {"method": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
            "max_length": 256,
            "gradient_checkpointing": True,
            "per_device_train_batch_size": 2,
            "early_stopping_patience": 3,
            "priority": "quality",
            "max_credits": 10_000,
        },
    )

    assert job.id.startswith("ftjob-")
    assert (job.object, job.status, job.model, job.training_file) == ("fine_tuning.job", "queued", "tiny", file_id)
    assert (job.seed, job.metadata, job.organization_id) == (42, {"team": "support"}, rich.organization_id)
    assert (job.result_files, job.finished_at, job.fine_tuned_model, job.error) == ([], None, None, None)
    chosen = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert job.hyperparameters.model_dump() == chosen
    assert job.method.supervised.hyperparameters.model_dump() == chosen
    extra = job.model_extra
    assert extra["adapter"] == {
        "method": "lora",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": "default",
        "modules_to_save": None,
    }
    assert (extra["max_length"], extra["gradient_checkpointing"], extra["suffix"]) == (256, True, "lamps")
    assert (extra["per_device_train_batch_size"], extra["gradient_accumulation_steps"]) == (2, 2)
    assert extra["early_stopping_patience"] == 3
    assert extra["memory"]["predicted"]["device_bytes"] > 0
    assert extra["memory"]["measured"] is None
    assert extra["charged"] is None
    assert rich.http.get("/v1/credits").json()["held"] == extra["quote"]["credits"] > 0


def test_variants_of_an_adapter_are_planned_and_echoed(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    asked = {"use_rslora": True, "use_dora": True, "init_lora_weights": "pissa", "modules_to_save": ["embed_tokens"]}
    file_id = rich.upload(rows)
    body = {"model": "tiny", "training_file": file_id, "adapter": asked | {"method": "qlora"}, "optim": "adamw_8bit"}
    plan = rich.http.post("/v1/plans", json=body).json()
    assert {name: plan["adapter"][name] for name in asked} == asked
    assert (plan["adapter"]["lora_alpha"], plan["optimizer"]) == (16, "adamw_8bit")
    assert (
        sum(any(word in reason for word in ("Rank-stab", "DoRA", "PiSSA", "whole")) for reason in plan["reasons"]) == 4
    )
    other = rich.http.post("/v1/fine_tuning/jobs", json={**body, "plan": plan["id"], "adapter": {"use_dora": False}})
    assert (other.status_code, other.json()["error"]["param"]) == (400, "adapter.use_dora")
    refused = rich.http.post("/v1/plans", json=body | {"adapter": {"modules_to_save": ["q_proj"]}})
    assert refused.status_code == 400
    assert "embed_tokens and lm_head can be trained whole" in refused.json()["error"]["message"]


def test_compiled_layers_want_a_gpu(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    body = {"model": "tiny", "training_file": rich.upload(rows)}
    refused = rich.http.post("/v1/plans", json=body | {"torch_compile": True})
    assert refused.status_code == 400
    assert "torch_compile is for GPUs" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "torch_compile"
    assert rich.http.post("/v1/plans", json=body | {"torch_compile": False}).json()["torch_compile"] is False


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"adapter": {"target_modules": ["qproj"]}}, "adapter.target_modules"),
        ({"adapter": {"use_dora": True, "target_modules": ["lm_head"]}}, "adapter.use_dora"),
        ({"adapter": {"method": "full", "r": 8}}, "adapter.method"),
        ({"hyperparameters": {"batch_size": 4}, "per_device_train_batch_size": 3}, "hyperparameters.batch_size"),
        ({"max_length": 100_000}, "max_length"),
        ({"optim": "sgd"}, "optim"),
    ],
)
def test_what_the_planner_refuses_names_the_parameter(
    rich: Tenant, rows: list[dict[str, Any]], change: dict[str, Any], param: str
) -> None:
    answer = rich.http.post("/v1/plans", json={"model": "tiny", "training_file": rich.upload(rows), **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_auto_leaves_everything_to_the_planner(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    job = rich.client.fine_tuning.jobs.create(
        model="tiny",
        training_file=rich.upload(rows),
        hyperparameters={"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
        extra_body={
            "adapter": {"method": "auto", "r": "auto", "lora_alpha": "auto", "target_modules": "auto"},
            "max_length": "auto",
            "gradient_checkpointing": "auto",
            "per_device_train_batch_size": "auto",
        },
    )

    assert job.hyperparameters.n_epochs >= 1
    assert job.hyperparameters.batch_size >= 1
    assert job.hyperparameters.learning_rate_multiplier == 1.0
    assert job.model_extra["adapter"]["r"] >= 8


def test_plan_is_explained_and_then_run_exactly(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    body = {"model": "tiny", "training_file": rich.upload(rows), "hyperparameters": {"n_epochs": 3}}

    plan = rich.http.post("/v1/plans", json=body).json()

    assert plan["reasons"]
    assert [alternative["chosen"] for alternative in plan["alternatives"]].count(True) == 1
    assert {alternative["method"] for alternative in plan["alternatives"]} >= {"lora", "qlora"}
    assert all(alternative["reason"] for alternative in plan["alternatives"])
    assert plan["data"]["examples"] == 12
    assert rich.http.get(f"/v1/plans/{plan['id']}").json() == plan
    assert rich.http.get("/v1/credits").json() == {"object": "credits", "available": 10_000, "held": 0}

    job = rich.http.post("/v1/fine_tuning/jobs", json={**body, "plan": plan["id"]}).json()

    assert (job["plan"], job["quote"]) == (plan["id"], plan["quote"])
    assert job["hyperparameters"] == plan["hyperparameters"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "short"}, "model"),
        ({"hyperparameters": {"n_epochs": 7}}, "hyperparameters.n_epochs"),
        ({"adapter": {"method": "qlora"}}, "adapter.method"),
        ({"early_stopping_patience": 3}, "early_stopping_patience"),
        ({"torch_compile": True}, "torch_compile"),
    ],
)
def test_plan_for_another_run_is_refused(
    rich: Tenant, rows: list[dict[str, Any]], change: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "training_file": rich.upload(rows)}
    plan = rich.http.post("/v1/plans", json=body).json()

    answer = rich.http.post("/v1/fine_tuning/jobs", json={**body, "plan": plan["id"], **change})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "plan_mismatch")
    assert answer.json()["error"]["param"] == param
    assert [transaction.kind for transaction in rich.transactions] == ["grant"]


def test_credit_code_and_limit_are_part_of_the_job(
    service: Service, tenant: Tenant, rows: list[dict[str, Any]]
) -> None:
    from core.ledger import codes

    service.runtime.database.run(lambda session: codes.create_code(session, f"J-{tenant.organization_id}", 500))
    file_id = tenant.upload(rows)
    body = {"model": "tiny", "training_file": file_id, "credit_code": f"J-{tenant.organization_id}"}

    too_dear = tenant.http.post("/v1/fine_tuning/jobs", json={**body, "max_credits": 0})
    assert too_dear.json()["error"]["code"] == "quote_above_max_credits"
    assert tenant.transactions == []

    job = tenant.http.post("/v1/fine_tuning/jobs", json=body).json()
    again = tenant.http.post("/v1/fine_tuning/jobs", json={**body, "seed": 1}).json()

    held = job["quote"]["credits"] + again["quote"]["credits"]
    assert tenant.http.get("/v1/credits").json() == {"object": "credits", "available": 500 - held, "held": held}


def test_list_pages_by_key_while_jobs_are_added(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    file_id = rich.upload(rows)
    create = rich.client.fine_tuning.jobs.create
    ids = [create(model="tiny", training_file=file_id, metadata={"n": str(n % 2)}).id for n in range(4)]
    first = rich.client.fine_tuning.jobs.list(limit=2)
    assert (first.has_more, first.model_extra["last_id"]) == (True, ids[2])
    added = create(model="tiny", training_file=file_id).id

    assert [job.id for job in first] == ids[::-1]
    jobs = rich.client.fine_tuning.jobs
    assert [job.id for job in jobs.list(metadata={"n": "1"}, limit=1)] == [ids[3], ids[1]]
    assert [job.id for job in jobs.list(metadata={"n": ""})] == []
    assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [added]


def test_cancel_pause_and_resume_move_a_queued_job(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    jobs = rich.client.fine_tuning.jobs
    job_id = jobs.create(model="tiny", training_file=rich.upload(rows)).id

    assert jobs.pause(job_id).status == "paused"
    assert jobs.pause(job_id).status == "paused"
    assert jobs.resume(job_id).status == "queued"
    cancelled = jobs.cancel(job_id)
    assert (cancelled.status, cancelled.model_extra["charged"]) == ("cancelled", 0)
    assert jobs.cancel(job_id).status == "cancelled"
    assert rich.http.get("/v1/credits").json() == {"object": "credits", "available": 10_000, "held": 0}

    refused = rich.http.post(f"/v1/fine_tuning/jobs/{job_id}/resume")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_job_state")
    assert refused.headers["x-should-retry"] == "false"


def test_finished_job_shows_its_model_files_and_price(
    service: Service, rich: Tenant, stranger: Tenant, rows: list[dict[str, Any]]
) -> None:
    jobs = rich.client.fine_tuning.jobs
    job_id = jobs.create(model="tiny", training_file=rich.upload(rows), suffix="lamps").id
    held = service.claim(job_id)
    assert jobs.retrieve(job_id).status == "running"
    for step in (1, 2):
        service.write_metrics(held, step)
    service.write_checkpoint(held, 2)
    service.finish(held)

    job = jobs.retrieve(job_id)
    assert (job.status, job.processed_tokens) == ("succeeded", 256)
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:tiny:")
    assert job.finished_at is not None

    events = list(jobs.list_events(job_id, limit=3))
    assert [event.object for event in events] == ["fine_tuning.job.event"] * len(events)
    assert events[0].message == "The job has successfully completed"
    metrics = [event.data for event in events if event.type == "metrics"]
    assert [data["step"] for data in metrics] == [2, 1]

    (checkpoint,) = jobs.checkpoints.list(job_id)
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (2, 0.5)
    assert checkpoint.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-2"

    (result_id,) = job.result_files
    assert rich.client.files.content(result_id).text.startswith("step,train_loss")
    artifacts = rich.http.get(f"/v1/fine_tuning/jobs/{job_id}/artifacts").json()["data"]
    assert [artifact["name"] for artifact in artifacts] == ["adapter.zip", "metrics.csv"]
    adapter = rich.http.get(artifacts[0]["url"])
    assert (adapter.content, adapter.headers["etag"]) == (b"PK adapter", f'"{artifacts[0]["sha256"]}"')
    assert "adapter.zip" in adapter.headers["content-disposition"]

    models = rich.client.models
    assert job.fine_tuned_model in [model.id for model in models.list()]
    assert models.retrieve(job.fine_tuned_model).owned_by == rich.organization_id
    for foreign in (
        lambda: stranger.client.models.retrieve(job.fine_tuned_model),
        lambda: stranger.client.models.delete(job.fine_tuned_model),
    ):
        with pytest.raises(openai.NotFoundError):
            foreign()
    assert models.delete(job.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        models.retrieve(job.fine_tuned_model)
    with pytest.raises(openai.PermissionDeniedError):
        models.delete("tiny")


def test_a_checkpoint_that_was_taken_before_a_failure_is_paid_for_and_stays(
    service: Service, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    job_id = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows)).id
    held = service.claim(job_id)
    with service.runtime.database.transaction() as session:
        lease.renew(session, service.settings, held, 1000.0)  # more than its quote
    service.write_metrics(held, 1)
    service.write_checkpoint(held, 1)
    (checkpoint,) = rich.client.fine_tuning.jobs.checkpoints.list(job_id)
    content = f"/v1/fine_tuning/jobs/{job_id}/checkpoints/{checkpoint.id}/content"
    assert rich.http.get(content).content == b"checkpoint"
    service.fail(held, "It broke.")
    job = rich.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert (job["status"], job["charged"]) == ("failed", job["quote"]["credits"])
    assert rich.http.get(content).content == b"checkpoint"


def test_a_job_that_failed_free_of_charge_gives_nothing_out(
    service: Service, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    job_id = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows)).id
    held = service.claim(job_id)
    service.write_metrics(held, 1)
    service.write_checkpoint(held, 1)
    (checkpoint,) = rich.client.fine_tuning.jobs.checkpoints.list(job_id)
    path = f"/v1/fine_tuning/jobs/{job_id}/checkpoints/{checkpoint.id}"
    service.fail(held, "It broke.")
    for answer in (rich.http.get(f"{path}/content"), rich.http.post(f"{path}/publish")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_job_state")
        assert "was not charged" in answer.json()["error"]["message"]


def test_deleting_a_result_file_leaves_the_jobs_artifact(
    service: Service, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    job_id = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows)).id
    service.finish(service.claim(job_id))
    (result_id,) = rich.client.fine_tuning.jobs.retrieve(job_id).result_files
    assert rich.client.files.delete(result_id).deleted
    assert rich.http.get(f"/v1/files/{result_id}/content").status_code == 404
    kept = rich.http.get(f"/v1/fine_tuning/jobs/{job_id}/artifacts/metrics.csv")
    assert (kept.status_code, kept.content[:4]) == (200, b"step")


def test_a_checkpoint_is_published_and_kept_until_its_model_is_deleted(
    service: Service, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    job_id = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows), suffix="kept").id
    path = f"/v1/fine_tuning/jobs/{job_id}/checkpoints"

    def kept() -> dict[int, tuple[float | None, bool]]:
        """The stored checkpoints: their own losses, and whether they are models."""
        found = rich.http.get(path).json()["data"]
        return {one["step_number"]: (one["metrics"]["valid_loss"], one["published"]) for one in found if one["bytes"]}

    held = service.claim(job_id)
    service.write_checkpoint(held, 1, valid_loss=2.0)
    first = rich.http.get(path).json()["data"][0]
    published = rich.http.post(f"{path}/{first['id']}/publish")
    assert published.json()["id"] == first["fine_tuned_model_checkpoint"]
    assert rich.http.post(f"{path}/{first['id']}/publish").json() == published.json(), "twice is once"
    for step, valid_loss in ((2, 1.0), (3, None), (4, 1.5), (5, None)):
        service.write_checkpoint(held, step, valid_loss)
    assert kept() == {1: (2.0, True), 2: (1.0, False), 4: (1.5, False), 5: (None, False)}

    service.finish(held)
    job = rich.client.fine_tuning.jobs.retrieve(job_id)
    models = [model.id for model in rich.client.models.list()]
    assert {job.fine_tuned_model, f"{job.fine_tuned_model}:ckpt-step-1"} <= set(models)
    expired = service.settings.model_copy(update={"checkpoint_retention_seconds": -1})
    keys = service.runtime.database.run(lambda session: expire_checkpoints(session, expired))
    assert kept() == {1: (2.0, True)}
    assert not [key for key in keys if key.endswith(f"{job_id}/1")]  # other jobs of this service have theirs
    assert rich.http.get(f"{path}/{first['id']}/content").content == b"checkpoint"

    assert rich.client.models.delete(f"{job.fine_tuned_model}:ckpt-step-1").deleted
    service.runtime.database.run(lambda session: expire_checkpoints(session, expired))
    assert kept() == {}
    gone = rich.http.post(f"{path}/{first['id']}/publish")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "checkpoint_not_found")


def test_a_failed_job_that_cost_nothing_publishes_nothing(
    service: Service, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    job_id = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows)).id
    held = service.claim(job_id)
    service.write_checkpoint(held, 1)
    service.fail(held, "The loss is not a number at step 3.")
    path = f"/v1/fine_tuning/jobs/{job_id}/checkpoints"
    checkpoint = rich.http.get(path).json()["data"][0]["id"]
    refused = rich.http.post(f"{path}/{checkpoint}/publish")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_job_state")


def test_a_job_says_what_it_is_measured_on(service: Service, rich: Tenant, rows: list[dict[str, Any]]) -> None:
    job = rich.client.fine_tuning.jobs.create(
        model="tiny",
        training_file=rich.upload(rows),
        extra_body={"validation_split": 3, "checkpoint_selection": "last"},
    )
    assert job.model_extra is not None
    assert (job.model_extra["held_out"], job.model_extra["checkpoint_selection"]) == (None, "last")
    plan = rich.http.get(f"/v1/plans/{job.model_extra['plan']}").json()
    assert plan["data"]["held_out_examples"] == 3
    service.write_held_out(service.claim(job.id), HeldOut(3, 41, "a1b2"))
    shown = rich.http.get(f"/v1/fine_tuning/jobs/{job.id}").json()["held_out"]
    assert shown == {"rows": 3, "scored_tokens": 41, "sha256": "a1b2", "too_few": True}


def test_failed_job_shows_its_error_and_costs_nothing(
    service: Service, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    jobs = rich.client.fine_tuning.jobs
    job_id = jobs.create(model="tiny", training_file=rich.upload(rows)).id
    service.fail(service.claim(job_id), "The loss is not a number at step 3.")

    job = jobs.retrieve(job_id)

    assert job.status == "failed"
    assert (job.error.code, job.error.message) == ("training_failed", "The loss is not a number at step 3.")
    assert job.model_extra["charged"] == 0
    assert rich.http.get("/v1/credits").json()["available"] == 10_000


def test_a_finished_job_is_deleted_with_its_bytes_and_the_books_stay(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    service = rich.service
    job = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows), suffix="gone")
    path = f"/v1/fine_tuning/jobs/{job.id}"
    refused = rich.http.delete(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_finished")

    held = service.claim(job.id)
    service.write_metrics(held, 1)
    service.write_checkpoint(held, 1)
    service.finish(held)
    model = rich.client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert any(job.id in str(path) for path in service.artifacts)
    booked = rich.transactions

    deleted = rich.http.delete(path)
    assert deleted.json() == {"id": job.id, "object": "fine_tuning.job", "deleted": True}
    assert not any(job.id in str(path) for path in service.artifacts)
    for gone in (path, f"{path}/events", f"{path}/artifacts/adapter.zip", f"{path}/checkpoints", f"/v1/models/{model}"):
        assert rich.http.get(gone).status_code == 404, gone
    assert rich.http.delete(path).status_code == 404
    assert [row.id for row in rich.client.fine_tuning.jobs.list()] == []
    assert [row.id for row in rich.transactions] == [row.id for row in booked]
    assert rich.client.files.retrieve(job.training_file).id == job.training_file


def test_what_the_planner_chooses_for_training_can_be_said(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    said = {"learning_rate": 0.002, "warmup_ratio": 0.25, "weight_decay": 0.125, "packing": False}
    body = {"model": "tiny", "training_file": rich.upload(rows), **said}
    plan = rich.http.post("/v1/plans", json=body).json()
    assert {name: plan[name] for name in said} == said
    mismatch = rich.http.post("/v1/fine_tuning/jobs", json={**body, "plan": plan["id"], "warmup_ratio": 0.5})
    assert (mismatch.status_code, mismatch.json()["error"]["param"]) == (400, "warmup_ratio")
