#!/usr/bin/env bash
# pyarrow 26.0.1 writes a column of lists that are nested 50 deep without a word, and its reader refuses the file: the
# schema has two levels for each list, and the reader takes 100 unless it is told `schema_depth_limit`. The writer does
# not look at that limit. With 49 it is read. A JSON Lines manifest may hold such a column.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import io

import pyarrow as pa
import pyarrow.parquet as pq


def written(depth: int) -> bytes:
    kind, value = pa.int32(), 1
    for _ in range(depth):
        kind, value = pa.list_(kind), [value]
    sink = io.BytesIO()
    pq.write_table(pa.table({"nested": pa.array([value], kind)}), sink)
    return sink.getvalue()


print("pyarrow", pa.__version__)
assert pq.ParquetFile(io.BytesIO(written(49))).read().num_rows == 1
print("49 deep: written and read")
try:
    pq.ParquetFile(io.BytesIO(written(50)))
except OSError as error:
    print("50 deep: written, and then:", error)
    assert "schema depth limit" in str(error)
else:
    raise SystemExit("50 deep is read now")
assert pq.ParquetFile(io.BytesIO(written(50)), schema_depth_limit=200).read().num_rows == 1
print("50 deep with schema_depth_limit=200: read")
PYTHON
