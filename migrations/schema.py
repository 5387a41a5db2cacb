"""Every table of the service in one `MetaData`, for comparing the models with a database."""

from sqlalchemy import MetaData

from core.accounts import models as accounts
from core.audit import models as audit
from core.datasets import models as datasets
from core.db.base import Base
from core.events import models as events
from core.fleet import models as fleet
from core.idempotency import models as idempotency
from core.jobs import models as jobs
from core.ledger import models as ledger
from core.plans import models as plans
from core.registry import models as registry
from core.usage import models as usage

# A table exists once its module is imported; naming them keeps the imports from looking unused.
MODULES = (accounts, audit, datasets, events, fleet, jobs, ledger, plans, registry, idempotency, usage)

metadata: MetaData = Base.metadata
