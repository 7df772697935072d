"""Runs scripts of this repository in processes that have imported the libraries already; used by `run_script`.

Two thirds of the time of a script that trains on a few pictures goes into importing torch and its like. Here they are
imported once; each script then runs in a fork: a process of its own, with its own arguments, folder and output, in
which none of our modules has been imported yet. A request is a line of JSON on standard input; the answer is the exit
status. Libraries that start threads when imported, such as onnxruntime, cannot be among them.
"""

import json
import os
import runpy
import signal
import sys

import albumentations  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import timm  # noqa: F401
import transformers.modeling_utils  # noqa: F401

for line in sys.stdin:
    request = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.alarm(request["seconds"])
    for number, name in enumerate([os.devnull, request["stdout"], request["stderr"]]):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ |= request["environment"]
    sys.argv = request["command"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
    break
