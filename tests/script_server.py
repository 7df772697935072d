"""Runs scripts of this repository in processes that have imported the libraries already; used by `run_script`.

Two thirds of the time of a script that trains on a few pictures goes into importing torch and its like. Here they are
imported once; each script then runs in a fork: a process of its own, with its own arguments, folder and output, in
which none of our modules has been imported yet. A request is a line of JSON on standard input: the command, and the
environment and the output files of each process that is to run it; the answer is their exit statuses. Libraries that
start threads when imported, such as onnxruntime, cannot be among them.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import traceback

import albumentations  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import timm  # noqa: F401
import transformers.models.distilbert.modeling_distilbert  # noqa: F401


def run(command, folder, process, seconds):
    """Be `python COMMAND` in a folder, with the environment and the output files of one of its processes."""
    signal.alarm(seconds)
    for number, name in enumerate([os.devnull, process["stdout"], process["stderr"]]):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ |= process["environment"]
    sys.argv = command
    sys.path[0] = os.path.dirname(command[0])
    status = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        stream.flush()
    os._exit(status)  # at once: to take the libraries down in good order would cost a second and a half


def main():
    gc.freeze()  # what is shared with the forks stays shared
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for process in request["processes"]:
            child = os.fork()
            if child == 0:
                run(request["command"], request["folder"], process, request["seconds"])
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)


main()
