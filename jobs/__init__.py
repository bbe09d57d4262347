"""What a job is, and its durable life: the ledger in Postgres and the wake-ups over Redis."""
