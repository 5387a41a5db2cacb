"""The one shape of every error, and the errors each route documents."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from pydantic import Field

from api.schemas.base import ResponseBody
from core.errors import (
    AuthenticationError,
    ConflictError,
    DatabaseFullError,
    ErrorBody,
    FileTooLargeError,
    HeadTooLargeError,
    InsufficientCreditsError,
    InvalidDatasetError,
    InvalidModelError,
    InvalidRequestError,
    LimitReachedError,
    ModelNotFoundError,
    NotFoundError,
    NotYetError,
    PermissionDeniedError,
    PlanDoesNotFitError,
    RateLimitError,
    ServiceUnavailableError,
    SlowRequestError,
    StoreError,
    TunewrightError,
    UnknownCodeError,
    UnknownHostError,
    UnsupportedMediaTypeError,
    WrongPasswordError,
)


class ErrorObject(ResponseBody):
    """What went wrong, for a person and for a program."""

    message: str = Field(description="What happened, the numbers involved, and what to do.")
    type: str = Field(description="The family of the error, as OpenAI names them.")
    param: str | None = Field(description="The field or parameter at fault, dotted; null where it is none.")
    code: str = Field(description="Stable snake_case name of this error.")


class ErrorEnvelope(ResponseBody):
    """The body of every response with a status of 400 or above."""

    error: ErrorObject


def envelope(body: ErrorBody) -> dict[str, object]:
    """The JSON object around an error."""
    return {"error": asdict(body)}


_SHOWN: tuple[TunewrightError, ...] = (
    InvalidRequestError("training_file is required.", param="training_file"),
    InvalidRequestError("The body is not valid JSON: Expecting ',' delimiter at character 14.", code="invalid_json"),
    InvalidRequestError(
        "Unknown field 'credit_cod'. Did you mean 'credit_code'?", code="unknown_field", param="credit_cod"
    ),
    InvalidRequestError(
        "method.type 'dpo' is not supported. Use 'supervised'.", code="unsupported_method", param="method.type"
    ),
    InvalidRequestError("integrations are not supported.", code="unsupported_integration", param="integrations"),
    InvalidRequestError("purpose must be 'fine-tune'; got 'assistants'.", code="invalid_purpose", param="purpose"),
    InvalidRequestError(
        "The quote is 310 credits, above your max_credits of 100. Raise it, or ask for a plan with priority 'economy'.",
        code="quote_above_max_credits",
        param="max_credits",
    ),
    InvalidRequestError("The plan plan_01JD… is for another model.", code="plan_mismatch", param="model"),
    InvalidRequestError("The code SUMMER expired on 2026-09-01.", code="code_expired", param="code"),
    InvalidRequestError(
        "The chat template 'chatml' cannot be used with this model: its vocabulary has no <|im_start|>, <|im_end|>. "
        "Use zephyr.",
        code="chat_template_not_usable",
        param="chat_template",
    ),
    InvalidDatasetError("The file 'train.jsonl' cannot be used: Line 17 is not valid JSON.", param="training_file"),
    InvalidRequestError(
        "'hf://acme' is no data set of the hub. Write hf://owner/name.",
        code="invalid_hub_reference",
        param="training_file",
    ),
    InvalidDatasetError(
        "The data set 'acme/secret' is gated: accept its terms on the hub. If it is private or gated, add your own hub "
        "token: under Settings, with PUT /v1/hub_token or, for commands, as HF_TOKEN.",
        code="dataset_gated",
        param="training_file",
    ),
    InvalidRequestError(
        "The hub does not take the hub token …x7Qk: it is misspelt, expired or revoked. Give another one: under "
        "Settings, with PUT /v1/hub_token or, for commands, as HF_TOKEN.",
        code="hub_token_refused",
        param="model",
    ),
    InvalidRequestError(
        "This is no hub token: it has 8 to 500 letters, digits and signs, and no spaces. Copy it from the hub's "
        "settings.",
        code="invalid_hub_token",
        param="token",
    ),
    InvalidDatasetError(
        "The data set 'acme/pictures' has no Parquet files, and the hub has converted none. Download it, and upload it "
        "as JSON Lines or Parquet.",
        code="no_parquet",
        param="training_file",
    ),
    InvalidDatasetError(
        "The data set 'acme/math' has no config 'default'. Choose one with ?config=…: main, socratic.",
        code="unknown_config",
        param="training_file",
    ),
    InvalidDatasetError(
        "The config 'main' of 'acme/math' has no split 'dev'. Choose one with ?split=…: test, train.",
        code="unknown_split",
        param="training_file",
    ),
    InvalidDatasetError("The file 'train.jsonl' is empty.", code="empty_file", param="file"),
    InvalidModelError(
        "The model 'acme/pickled' has no safetensors weights, only pickle files, which can run code when loaded.",
        code="unsafe_weights",
        param="model",
    ),
    InvalidModelError(
        "The weights of 'acme/fp8' are already quantized: model.layers.0.mlp.up_proj.weight is of type F8_E4M3.",
        code="quantized_weights",
        param="model",
    ),
    InvalidModelError(
        "The weights of 'acme/cut' are not those of its configuration: the files hold 7,241,732,096 parameters, "
        "218,112,000 fewer than the 7,459,844,096 that config.json describes.",
        code="weights_mismatch",
        param="model",
    ),
    InvalidModelError(
        "The configuration and tokenizer files of 'acme/large' are not fetched: vocab.json has 400,000,000 bytes, and "
        "67,108,864 are read.",
        code="metadata_too_large",
        param="model",
    ),
    InvalidModelError(
        "The safetensors headers of 'acme/torn' cannot be read: the file is truncated.",
        code="unreadable_weights",
        param="model",
    ),
    InvalidModelError(
        "The hub model 'acme/gated' is gated: accept its terms on the hub. If it is private or gated, add your own hub "
        "token: under Settings, with PUT /v1/hub_token or, for commands, as HF_TOKEN.",
        code="model_gated",
        param="model",
    ),
    InvalidModelError(
        "'acme-moe' cannot be built as a causal language model.", code="unsupported_architecture", param="model"
    ),
    PlanDoesNotFitError(
        "The smallest QLoRA run needs 41.3 GiB; the largest device has 22.9 GiB free. A GPU with 48 GiB would do.",
        param="model",
    ),
    AuthenticationError("Incorrect API key provided. Create one with `tunewright keys create`."),
    AuthenticationError("Your session has ended. Sign in again with a new link.", code="session_expired"),
    WrongPasswordError("The e-mail address or the password is wrong."),
    InsufficientCreditsError(
        "This job is quoted at 310 credits and 100 are available. Redeem a credit code, or ask for a smaller or "
        "cheaper plan."
    ),
    PermissionDeniedError("This request was started by another site and is refused.", code="cross_site_request"),
    PermissionDeniedError("This needs the scope 'write'; yours is 'read'.", code="insufficient_scope"),
    PermissionDeniedError("Signing up is closed here.", code="sign_up_closed"),
    PermissionDeniedError(
        "This link has expired: it signs one browser in, once, and only for a while.", code="sign_in_link_spent"
    ),
    PermissionDeniedError("'smollm2-135m-instruct' is a base model and cannot be deleted here.", param="model"),
    NotFoundError("No file 'file-01JD…'.", code="file_not_found", param="file_id"),
    NotFoundError(
        "The hub has no such data set: 'acme/maths'. Check its spelling.",
        code="dataset_not_found",
        param="training_file",
    ),
    NotFoundError("No fine-tuning job 'ftjob-01JD…'.", code="job_not_found", param="fine_tuning_job_id"),
    NotFoundError("No plan 'plan_01JD…'.", code="plan_not_found", param="plan"),
    NotFoundError(
        "The job ftjob-01JD… has no checkpoint 'ftckpt_01JD…'.", code="checkpoint_not_found", param="checkpoint_id"
    ),
    NotFoundError("The job ftjob-01JD… has no artifact 'adapter.zip'.", code="artifact_not_found", param="name"),
    NotFoundError("This organization has no hub token.", code="hub_token_not_found"),
    UnknownCodeError("No such credit code. Check its spelling.", param="code"),
    NotFoundError("No API key 'key_01JD…'.", code="api_key_not_found", param="key_id"),
    ModelNotFoundError("The model 'smollm9' does not exist.", param="model"),
    ConflictError(
        "This service keeps no secrets: whoever runs it gives every process the same TUNEWRIGHT_SECRET_KEY first.",
        code="secret_key_missing",
    ),
    SlowRequestError("12,288 bytes of the body came in 61 seconds, and then no more."),
    ConflictError(
        "The job ftjob-01JD… is succeeded and cannot become cancelled.", code="invalid_job_state", param="job_id"
    ),
    ConflictError("The job ftjob-01JD… still needs this file.", code="file_in_use"),
    ConflictError(
        "The job ftjob-01JD… is running. Cancel it, or wait for its end, and delete it then.",
        code="job_not_finished",
        param="fine_tuning_job_id",
    ),
    NotYetError("The file file-01JD… is still being inspected.", code="file_not_processed", param="training_file"),
    NotYetError(
        "The planner has no formula for 'stablelm', so a worker dry-runs its training steps, which takes about a "
        "minute and is done once for a data set. Ask again then.",
        code="dry_run_pending",
        param="model",
    ),
    NotYetError(
        "A worker fetches 'acme--math-main-train-1a2b3c4d.parquet' (2,306,545 bytes) from the hub as file-01JD…. Ask "
        "again then.",
        code="file_being_fetched",
        param="training_file",
    ),
    ConflictError("The quote of plan_01JD… stood until 12:00:00 UTC.", code="quote_expired", param="plan"),
    ConflictError("You have redeemed SANTIAGO already (1 of 1 times).", code="code_already_redeemed", param="code"),
    ConflictError("The code SANTIAGO exists already.", code="code_exists", param="code"),
    ConflictError("There is an account with this e-mail address already.", code="email_taken"),
    ConflictError("The code LAUNCH has been redeemed all 100 times it can be.", code="code_exhausted", param="code"),
    ConflictError(
        "This Idempotency-Key was used with another body. Use a new key for a new request.",
        code="idempotency_key_reused",
        param="Idempotency-Key",
    ),
    ConflictError("This API key was made and used already; its secret cannot be shown again.", code="api_key_in_use"),
    FileTooLargeError("The file is larger than the limit upload_bytes, 536,870,912.", param="file"),
    FileTooLargeError("The body is larger than 1,048,576 bytes.", code="request_too_large"),
    UnsupportedMediaTypeError("Send the body as application/json; got 'text/plain'."),
    UnknownHostError("This service does not answer to the host 'evil.example'."),
    HeadTooLargeError("The request's line has 60,000 bytes; 16,384 are read. Shorten it."),
    RateLimitError("More than 6,000 requests of this key or session in 60 seconds. Try again in 12 seconds."),
    RateLimitError(
        "Too many files are being read at once: 4 of this organization's and 0 others wait. Try again in 2 seconds.",
        code="too_many_at_once",
    ),
    LimitReachedError(
        "This organization's limit files is 10,000; this would make it 10,001. Delete files that are no longer needed.",
        code="files_limit",
    ),
    LimitReachedError(
        "This organization's limit plans is 5,000; this would make it 5,001. Those that no job uses are forgotten by "
        "themselves; try again later.",
        code="plans_limit",
    ),
    LimitReachedError(
        "This organization's limit waiting_dry_runs is 5; this would make it 6. Ask again when one of them has been "
        "answered.",
        code="waiting_dry_runs_limit",
    ),
    LimitReachedError(
        "100 event streams of this organization are open, of 100 it may have, and 120 in all, of 4,096. Close some, or "
        "list the events instead.",
        code="event_streams_limit",
    ),
    LimitReachedError(
        "This organization's limit queued_jobs is 200; this would make it 201. Wait until one of its jobs has started, "
        "or cancel one.",
        code="queued_jobs_limit",
    ),
    LimitReachedError(
        "This organization's limit storage_bytes is 107,374,182,400; this would make it 107,374,199,808. Delete files "
        "that are no longer needed.",
        code="storage_bytes_limit",
    ),
    ServiceUnavailableError("No worker has reported a device lately, so nothing can be planned.", code="no_workers"),
    ServiceUnavailableError("50 models wait to be dry-run.", code="too_many_dry_runs", param="model"),
    ServiceUnavailableError("The model hub did not answer for 'acme/model'.", code="hub_unreachable", param="model"),
    ServiceUnavailableError(
        "What this service keeps encrypted cannot be read: its secret key is another one than it was written with.",
        code="secret_key_changed",
    ),
    ServiceUnavailableError("Not ready: the broker does not answer (ConnectionError).", code="not_ready"),
    ServiceUnavailableError("The database does not answer. Try again in a moment.", code="database_unavailable"),
    DatabaseFullError("The database's disk is full. Nothing of this request was kept; what was there before is."),
    StoreError("The artifact store cannot be read."),
)
_BY_CODE = {error.code: error for error in _SHOWN}

EVERYWHERE = ("invalid_request_error", "database_unavailable")
SIGNED_IN = (
    *EVERYWHERE,
    "invalid_api_key",
    "session_expired",
    "cross_site_request",
    "insufficient_scope",
    "rate_limit_exceeded",
)
BODY = ("invalid_json", "unknown_field", "request_too_slow", "request_too_large", "unsupported_media_type")
CREATE = (*SIGNED_IN, *BODY, "idempotency_key_reused", "disk_full")
PLANNING = (
    "invalid_hub_reference",
    "dataset_gated",
    "no_parquet",
    "unknown_config",
    "unknown_split",
    "dataset_not_found",
    "file_being_fetched",
    "file_too_large",
    "storage_bytes_limit",
    "files_limit",
    "plans_limit",
    "waiting_dry_runs_limit",
    "chat_template_not_usable",
    "unsupported_method",
    "unsupported_integration",
    "invalid_dataset",
    "unsafe_weights",
    "model_gated",
    "metadata_too_large",
    "quantized_weights",
    "weights_mismatch",
    "unreadable_weights",
    "unsupported_architecture",
    "dry_run_pending",
    "too_many_dry_runs",
    "plan_does_not_fit",
    "file_not_found",
    "model_not_found",
    "file_not_processed",
    "too_many_at_once",
    "no_workers",
    "hub_unreachable",
    "hub_token_refused",
    "secret_key_changed",
    "store_unavailable",
)

_TITLES = {
    400: "The request cannot mean anything.",
    401: "No valid API key or session.",
    402: "Not enough credits.",
    403: "Known, but not allowed.",
    404: "No such object, or it belongs to another organization.",
    408: "The body stopped arriving, or came too slowly.",
    409: "The object's state does not allow it. Retrying alone does not help, unless `retry-after` says when.",
    413: "Too large. Nothing is kept.",
    415: "The body is of another content type than this route reads.",
    421: "The service does not answer to the request's host.",
    431: "The request's line or headers are too long.",
    429: "Asked too often, or an organization is at one of its limits.",
    503: "A part of the service is away. Try again.",
    507: "The disk of the database or the store has no room; nothing of the request was kept.",
}


def errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for these error codes, by status, each with its example among `error_examples`."""
    by_status: dict[int, dict[str, Any]] = defaultdict(dict)
    for code in dict.fromkeys(codes):
        error = _BY_CODE[code]
        by_status[error.status][code] = {"$ref": f"#/components/examples/{code}"}
    return {
        status: {
            "model": ErrorEnvelope,
            "description": _TITLES[status],
            "content": {"application/json": {"examples": examples}},
        }
        for status, examples in sorted(by_status.items())
    }


def error_examples() -> dict[str, dict[str, Any]]:
    """OpenAPI examples of every error that some route documents, by code."""
    return {code: {"value": envelope(error.body)} for code, error in sorted(_BY_CODE.items())}


def documented_codes() -> set[str]:
    """Every error code that some route may document."""
    return set(_BY_CODE)
