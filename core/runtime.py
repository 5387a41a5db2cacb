"""What every process of the service opens once and passes down: settings, database, store, publisher, children, hub."""

from dataclasses import dataclass, field

from core.artifacts.store import ArtifactStore, open_store
from core.db.session import Database
from core.limited import ChildPool
from core.queue.publisher import QueuePublisher
from core.registry.hub_state import HubStates
from core.settings import Settings
from core.throttle.service import Throttle


@dataclass(frozen=True)
class Runtime:
    """The open parts of one process."""

    settings: Settings
    database: Database
    store: ArtifactStore
    publisher: QueuePublisher
    throttle: Throttle
    children: ChildPool = field(default_factory=ChildPool)
    hub: HubStates = field(default_factory=HubStates)

    def close(self) -> None:
        """Give all connections back, and end what children do."""
        self.children.close()
        self.database.close()
        self.publisher.close()


def open_runtime(settings: Settings) -> Runtime:
    """Open everything the settings name. Connections are made on first use."""
    publisher = QueuePublisher(settings.resolved_redis_url)
    return Runtime(
        settings=settings,
        database=Database(settings.resolved_database_url, publisher),
        store=open_store(
            settings.resolved_store_url,
            endpoint_url=settings.s3_endpoint_url,
            public_endpoint_url=settings.s3_public_endpoint_url,
        ),
        publisher=publisher,
        throttle=Throttle(settings.resolved_redis_url),
        children=ChildPool(settings.files_read_at_once, settings.file_memory_bytes),
    )
