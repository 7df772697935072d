"""Where the page keeps example pictures: a folder that only its owner can look into, and that is gone at the end.

Imported before Gradio, which takes the folder from the environment.
"""

import os
import tempfile
from pathlib import Path

FOLDER = tempfile.TemporaryDirectory(prefix="clip-uploads-")
UPLOADED = Path(FOLDER.name).resolve()
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADED)
