"""The database and the code that speaks to it."""
