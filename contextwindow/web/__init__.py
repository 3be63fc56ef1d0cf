"""The inspector: pages to look into a database of contexts, for the person who runs it.

``contextwindow inspect DB`` serves them.  They need the extra ``web``.
"""
