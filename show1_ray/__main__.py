"""`python -m show1_ray` is `show1-ray`."""

from show1_ray.cli import main

main()
