from tests.support.harness.postgres import database, postgres_server

__all__ = ["database", "postgres_server"]
