"""Where the page keeps example pictures: a folder that only its owner can look into, and that is gone at the end.

Imported before Gradio, which takes the folder, and whether it may tell its makers anything, from the environment.
"""

import os
import tempfile
from pathlib import Path

FOLDER = tempfile.TemporaryDirectory(prefix="clip-uploads-")
UPLOADED = Path(FOLDER.name).resolve()
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(UPLOADED)}
