"""The web demo: a page where people type prompts and watch the cascade work. Needs the extra `demo`."""
