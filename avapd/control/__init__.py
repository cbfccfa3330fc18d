"""The master process: talks to PostgreSQL and to its workers, never to an RPC client."""
