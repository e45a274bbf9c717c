"""What a run leaves behind: a table of rows and a record of how they came to be, in one folder."""

from layerscope.record.rows import COLUMNS, Column, describe_columns, rows_frame
from layerscope.record.run_record import SCHEMA_VERSION, RunRecord
from layerscope.record.store import new_folder
from layerscope.run_folder import Run, default_folder_name

__all__ = [
    "COLUMNS",
    "SCHEMA_VERSION",
    "Column",
    "Run",
    "RunRecord",
    "default_folder_name",
    "describe_columns",
    "new_folder",
    "rows_frame",
]
