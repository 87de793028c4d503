"""Connecting to a Ray cluster, and handing jobs to one."""
