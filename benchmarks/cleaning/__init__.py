"""How well wrong labels are found, beside what others would do."""
