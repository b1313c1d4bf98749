"""Fixtures of the end-to-end tests: a real PostgreSQL, a fresh database for each test."""

from tests.support.harness.postgres import database, postgres_server

__all__ = ["database", "postgres_server"]
