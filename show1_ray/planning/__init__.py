"""What stages cost and what a job takes, before it runs."""
