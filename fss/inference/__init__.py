"""The use of a trained method on a user's own pictures: in Python, as a command and on a web page.

May import fss.report, fss.evaluate and what these import. Only launch imports it.
"""
