"""The web demo: a page where people type prompts and watch clips being made. Needs the extra `demo`."""
