"""What keeps the scripts safe and fast.

Whoever imports any of it has the libraries told first, in the environment, that nothing calls home. A setting of the
user's own stays.
"""

import logging
import os

SETTINGS = {
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it would ask the network for its newest version
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime would keep a device id and a database in the user's cache folder
    "GRADIO_ANALYTICS_ENABLED": "False",  # the page's library would tell its makers what was started
    "HF_HUB_DISABLE_TELEMETRY": "1",  # and the hub's client which libraries are in use
    "TOKENIZERS_PARALLELISM": "false",  # tokenizers would warn about each worker that is forked
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
# Where a home cannot be written, matplotlib would say twice that it keeps its fonts elsewhere.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
