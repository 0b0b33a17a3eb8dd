"""The report that a run or a study writes when it has ended."""

from pathlib import Path

from multicoco.errors import UserError


def report_at_end(folder: Path) -> None:
    """Of a run or study that has ended well: whatever goes wrong with its report is said, and changes nothing."""
    try:
        from multicoco.report.page import write_report  # a library that it needs may be broken

        print(f"report: {write_report([folder])}", flush=True)
    except Exception as error:
        print(f"no report was written: {error if isinstance(error, UserError) else repr(error)}", flush=True)
