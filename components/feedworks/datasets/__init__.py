"""Public data sets: from the files that their owners publish to the tables of `feedworks.contracts`."""
