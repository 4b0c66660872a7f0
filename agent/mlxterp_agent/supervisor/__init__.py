"""The supervised run: the loop, the life of one experiment, the watcher, the project as it stands."""
