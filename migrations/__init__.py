"""Alembic migrations, shipped as ``contextwindow.migrations``."""
