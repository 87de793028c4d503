"""`python -m show1_ray.cluster.shipped` is `show1-ray` with arguments that no process list and no dashboard may show:
they lie in a file of the folder that is shipped with the job.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ARGUMENTS = "arguments.json"


if __name__ == "__main__":
    from show1_ray.cli import main

    sys.argv[1:] = json.loads(Path(ARGUMENTS).read_text())
    main()
