"""Connecting to a Ray cluster, and submitting jobs to one."""
