"""What evaluated runs say against each other: paired statistics, and the rule by which they are read.

statistics.py   exact tests, Holm's correction, intervals of paired differences
samples.py      evaluated run folders, and the questions that they share
compare.py      `multicoco compare`
verdict.py      the reading rule: what it takes to say that the thoughts carry the reasoning
"""
