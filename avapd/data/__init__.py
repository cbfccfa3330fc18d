"""The worker process: serves from RAM. It knows no database and imports nothing that does."""
