"""Public data sets, one a file: each turns the files that users have on disk into rows."""
