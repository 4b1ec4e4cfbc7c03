"""Side by side with a bare Celery task, Dask and Ray: ``python -m benchmarks``."""
