"""A run or a study to look at: one HTML file that asks nobody for anything.

folder.py    what a run folder holds, read generously
examples.py  the questions that a run was asked, as its data file has them: pictures and steps
answers.py   every question with all that was answered to it
pictures.py  pictures as thumbnails, within a budget
charts.py    curves, points and bars as SVG
story.py     a run in sentences
run.py       a run's part of the page
study.py     a study's part of the page
page.py      `multicoco report`
at_end.py    the report that a run or a study writes by itself

locks.py     whether a run is going on
listing.py   `multicoco runs`
watch.py     `multicoco watch`
"""
