"""What a rank holds of its data, by the number of records: resident memory of the rank and of its worker, time a step.

Two ranks with a tiny model on generated records, every 50th with an image, which an earlier start has read.
"""

import tempfile
from pathlib import Path

from common import parser
from measuring import Report
from starting import IMAGE_EVERY, RANKS, generate, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    options.add_argument("--steps", type=int, default=100)
    args = options.parse_args()
    report = Report("data_memory", {"ranks": RANKS, "image_every": IMAGE_EVERY, "steps": args.steps}, args.out)
    for records in args.records:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            config = generate(Path(folder) / "data", records)
            run(config, steps=3)
            measured = run(config, args.steps)
            held = {key: measured[key] for key in ("rank_mib", "peak_mib", "worker_mib", "step_s")}
            report.add({"records": records, **held})
    most = report.rows[-1]["peak_mib"]
    report.goal(f"memory of a rank at {args.records[-1]} records, MiB", "<= 1024", most, most <= 1024)
    report.finish()


if __name__ == "__main__":
    main()
