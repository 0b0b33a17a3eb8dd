"""What evaluated runs say against each other: paired statistics, and the rule by which they are read.

statistics.py   exact tests, Holm's correction, intervals of paired differences
samples.py      evaluated run folders, and the questions that they share
compare.py      `multicoco compare`
verdict.py      the reading rule: what it takes to say that the thoughts carry the reasoning

keys.py         STUDY.yaml
spec.py         the runs that it asks for
done.py         what of them is done
checks.py       what they need, before the first one
plan.py         `--plan`: their steps and time
runner.py       does what is missing of them
gather.py       reads what is done
results.py      compares and judges it
schema.py       study.json
"""
