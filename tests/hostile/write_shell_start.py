"""Plants a command in a shell's start file."""

with open(f"{home}/.bashrc", "a") as file:
    file.write("true\n")
