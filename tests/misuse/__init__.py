"""What happens when the public names are used wrongly: a table of calls, each refused at the entrance."""
