"""Costs of stages, and estimates of jobs, before they run."""
