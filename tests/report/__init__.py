"""The report: what is recorded, read and shown."""
