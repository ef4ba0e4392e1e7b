"""What a table is: columns, types, keys, ranges and order, described once for everyone who reads data."""
