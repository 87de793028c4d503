"""The report of a job: one HTML file beside the clips."""

from show1_ray.dataset.report.report import REPORT, About, Report

__all__ = ["REPORT", "About", "Report"]
