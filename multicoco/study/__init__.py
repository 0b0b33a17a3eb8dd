"""What evaluated runs say against each other: paired statistics, and the rule by which they are read.

statistics.py   exact tests, Holm's correction, intervals of paired differences
samples.py      evaluated run folders, and the questions that they share
compare.py      `multicoco compare`
verdict.py      the reading rule: what it takes to say that the thoughts carry the reasoning

spec.py         STUDY.yaml, and the runs that it asks for
runner.py       does what is missing of them
gather.py       reads what is done
results.py      compares and judges it
schema.py       study.json
"""
