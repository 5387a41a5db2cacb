"""Facts that let plans be made offline: popular base models and GPUs."""

from planner.catalogue.gpus import GIB, CatalogueGpu, find_gpu, gpus, match_driver_name
from planner.catalogue.models import CatalogueModel, find_model, models

__all__ = ["GIB", "CatalogueGpu", "CatalogueModel", "find_gpu", "find_model", "gpus", "match_driver_name", "models"]
