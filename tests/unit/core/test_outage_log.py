"""An outage is one line at its begin, fewer and fewer while it lasts, and one at its end."""

from structlog.testing import capture_logs

from core.outage_log import OutageLog


def test_an_hour_of_tries_each_second_is_a_few_lines_and_one_at_its_end() -> None:
    now = 0.0
    outage = OutageLog("broker_away", "broker_back", clock=lambda: now)
    with capture_logs() as lines:
        outage.back()
        for second in range(3600):
            now = float(second)
            outage.away(OSError("refused"), job_id="ftjob-1")
        outage.back(job_id="ftjob-1")
        outage.back(job_id="ftjob-1")
    away = [line["for_seconds"] for line in lines if line["event"] == "broker_away"]
    assert away == [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 3030]
    assert lines[0]["error"] == "refused"
    assert lines[len(away) :] == [
        {"event": "broker_back", "log_level": "info", "after_seconds": 3599.0, "job_id": "ftjob-1"}
    ]


def test_the_next_outage_is_said_at_once() -> None:
    outage = OutageLog("broker_away", "broker_back")
    with capture_logs() as lines:
        outage.away(OSError())
        outage.back()
        outage.away(OSError())
    assert [line["event"] for line in lines] == ["broker_away", "broker_back", "broker_away"]
    assert lines[0]["error"] == "OSError"
