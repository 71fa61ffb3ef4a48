"""Plans: a request and scores become the slots to remove from every parameter; plans are files, and can be combined."""
