"""Names a program that git would run at every status."""

with open(f"{project}/.git/config", "a") as config:
    config.write("[core]\n\tfsmonitor = /tmp/x\n")
