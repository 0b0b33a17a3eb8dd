"""A checkpoint that answers questions in this process, as it would in an evaluation, without DeepSpeed.

asker.py    `multicoco.load`, and `ask`
session.py  `multicoco ask`: one question, or those of standard input
"""
