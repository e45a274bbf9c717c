"""What a run leaves behind: a table of rows and a record of how they came to be, in one folder."""

from layerscope.record.rows import COLUMNS, Column, describe_columns, rows_frame
from layerscope.record.run_record import SCHEMA_VERSION, RunRecord
from layerscope.record.store import new_folder

__all__ = [
    "COLUMNS",
    "SCHEMA_VERSION",
    "Column",
    "RunRecord",
    "describe_columns",
    "new_folder",
    "rows_frame",
]
