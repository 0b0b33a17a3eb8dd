"""`multicoco export`: a checkpoint for those who have no MultiCoCo.

checkpoint.py       what is exported
prompt.py           how it is asked
custom_generate.py  how it thinks: goes into the folder as it is
card.py             what is said of it
folder.py           all of it, written and uploaded
"""
