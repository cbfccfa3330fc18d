"""What the tests share: real PostgreSQL, real servers, real clients, and waiting for conditions instead of sleeping."""
