"""Programs of `tunewright up` that hang are killed and started again, each of them: the broker, too."""

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cli.broker import beat_for
from cli.supervision import Liveness, Runner, supervise
from cli.up import STARTER_MODEL, _programs
from core.db.migrate import upgrade
from core.settings import Settings
from tests.ports import free_port
from tests.waiting import PATIENCE_SECONDS

QUICK = Liveness(check_seconds=0.5, silent_checks=20)  # ten seconds of the minute that ships


def test_whatever_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    upgrade(settings.resolved_database_url)
    (tmp_path / "models" / STARTER_MODEL).mkdir(parents=True)
    (tmp_path / "models" / STARTER_MODEL / "config.json").write_text("{}")
    programs = _programs(settings, "127.0.0.1", free_port())
    assert all(program.liveness == Liveness() for stage in programs.stages for program in stage)
    environment = {**os.environ, **programs.environment}
    stages = [
        [Runner(replace(program, liveness=QUICK), environment, tmp_path) for program in stage]
        for stage in programs.stages
    ]
    runners = [runner for stage in stages for runner in stage]
    assert {runner.program.name for runner in runners} == {"api", "maintenance", "worker", "valkey"}
    assert programs.broker is not None
    endings: list[str | None] = []
    broker = beat_for(programs.broker.url, runners[-1].alive_path)

    async def stop_and_see() -> None:
        beating = asyncio.create_task(broker)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await until_all_live(runners, starts=1)
            for runner in runners:
                assert runner.process_id is not None
                os.kill(runner.process_id, signal.SIGSTOP)
            await until_all_live(runners, starts=2)
        endings.extend(runner.state.last_ending for runner in runners)
        beating.cancel()
        os.kill(os.getpid(), signal.SIGINT)

    asyncio.run(supervise(stages, stop_and_see()))
    assert endings == ["a hang"] * 4


async def until_all_live(runners: Sequence[Runner], starts: int) -> None:
    """Until each has been started so often and gives signs of life."""
    while not all(runner.state.restarts >= starts - 1 and runner.alive_path.exists() for runner in runners):
        await asyncio.sleep(0.05)
