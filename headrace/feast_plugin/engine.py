"""Feast's batch engine over ours: views of the catalog are materialized by whole columns, without Feast's messages."""

from __future__ import annotations

from typing import Any

from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry

from headrace.feast_plugin.shared import shared_of
from headrace.feast_plugin.values import micros_of
from materialize.batch import materialize_view

__all__ = ["HeadraceBatchEngine"]


class HeadraceBatchEngine(LocalComputeEngine):  # type: ignore[misc]
    """Materializes the catalog's views from their files; what the stream fills needs none, and what is kept as Feast's
    values goes Feast's own way."""

    def _materialize_one(self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any) -> Any:
        name = task.feature_view.name
        shared = shared_of(self.repo_config)
        catalog = shared.catalog_of(name)
        if not catalog.has_view(name):
            return super()._materialize_one(registry, task, **kwargs)
        job_id = f"{name}-{task.start_time}-{task.end_time}"
        if catalog.view(name).batch is not None:
            start_us, end_us = micros_of([task.start_time, task.end_time]).tolist()
            try:
                materialize_view(shared.settings, name, start_us, end_us, progress=False)
            except Exception as error:  # Feast raises what the job holds
                return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)
