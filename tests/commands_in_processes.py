"""Commands one after another in each of several processes, as torchrun starts them; a failed one ends its process."""
import json
import sys

from ft_course.app.cli import app

for command in json.loads(sys.argv[1]):
    print(json.dumps({"command": command}), flush=True)
    if code := app(command, standalone_mode=False):
        sys.exit(code)
