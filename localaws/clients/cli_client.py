"""The AWS command line as a client of the scenarios: a call a line on stdin, its answer on stdout.

Arguments: ENDPOINT REGION ACCOUNT COMMAND... Every call is a process of its own.
"""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile

endpoint, region, account, *command = sys.argv[1:]
environ = os.environ | {
    "AWS_ACCESS_KEY_ID": account,
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": region,
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_PAGER": "",
    "LC_ALL": "C.UTF-8",
}
version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
takes_base64 = not version.startswith("aws-cli/1.")
FAILURE = re.compile(
    r"An error occurred \((.+?)\) when calling the \w+ operation(?: \(.*?\))?: (.*)", re.DOTALL
)


def decoded(value):
    """What a scenario sends; version 1 takes binary values as text, later ones as base64."""
    if isinstance(value, list):
        return [decoded(element) for element in value]
    if isinstance(value, dict):
        if "$bytes" in value:
            return value["$bytes"] if takes_base64 else base64.b64decode(value["$bytes"]).decode()
        if "$time" in value:
            return value["$time"]
        return {key: decoded(element) for key, element in value.items()}
    return value


def kebab(op):
    """SendMessageBatch is send-message-batch, AssumeRoleWithSAML assume-role-with-saml."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", op).lower()


def answer(call):
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(decoded(call["in"]), file)
        file.flush()
        words = [*command, "--endpoint-url", endpoint, "--output", "json", "--no-paginate"]
        words += [call["service"], kebab(call["op"]), "--cli-input-json", f"file://{file.name}"]
        done = subprocess.run(words, capture_output=True, text=True, env=environ, encoding="utf-8")
    if done.returncode == 0:
        return {"out": json.loads(done.stdout or "{}")}
    found = FAILURE.search(done.stderr)
    if not found:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return {"error": {"code": found[1], "message": found[2].rstrip("\n")}}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
