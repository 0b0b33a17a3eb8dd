"""`multicoco app`: a checkpoint that is asked in a browser, on this machine.

server.py    how the page is served: to whom, and what it does not do
page.py      what is on it, and what its buttons do (Gradio)
examples.py  questions that come with it
shown.py     answers, thoughts and pictures as HTML, in which all texts are escaped
"""
