"""From the start of a run's processes to its first optimizer step, for the first time on its data and again.

Two ranks with a tiny model on generated records, every 50th with an image. What starts have in common, such as imports,
is in the figures of the fewest records. cpu_s is what a rank's process has worked for it, whatever else the cores do.
"""

import tempfile
from pathlib import Path

from common import parser
from measuring import Report
from starting import IMAGE_EVERY, RANKS, generate, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    args = options.parse_args()
    report = Report("startup", {"ranks": RANKS, "image_every": IMAGE_EVERY}, args.out)
    for records in args.records:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            config = generate(Path(folder) / "data", records)
            for start in ("first", "again"):
                measured = run(config, steps=3)
                about = {key: measured[key] for key in ("first_step_s", "cpu_s", "peak_mib")}
                report.add({"records": records, "start": start, **about})
    again = report.rows[-1]["first_step_s"]
    report.goal(f"start again at {args.records[-1]} records, seconds", "<= 60", again, again <= 60)
    report.finish()


if __name__ == "__main__":
    main()
