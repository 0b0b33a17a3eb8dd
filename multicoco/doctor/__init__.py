"""`multicoco doctor`: what would stop a run is found on every host before the run starts.

hostfile.py   the hosts and their slots
hosts.py      talks to all of them at once, over ssh as the launcher does
probe.py      runs on each host and answers with what it finds there, in JSON
space.py      the size of the checkpoints that the run will write
allreduce.py  the bandwidth between all ranks, started by the launcher
checks.py     judges the answers, and names the remedies
examine.py    all of it in order, and the table
exact.py      another question: whether the latent passes compute what the run's model computes
"""
