"""Jobs for many machines: state in Redis, pictures on a shared volume, workers called by Celery. Imported only where
``STYLIZE_JOBS_URL`` asks for it."""
