"""Score one image: python example.py IMAGE [MAP.npy]

Prints the score and the label (1 is defective), and saves the map, (H, W) float32.
Needs onnxruntime, numpy, opencv-python-headless and pillow; pyimgano is not needed.
"""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

# ONNX Runtime keeps an identifier in the home folder and reports its use unless this is set before.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

here = Path(__file__).resolve().parent
if len(sys.argv) not in (2, 3):
    sys.exit("usage: python example.py IMAGE [MAP.npy]")
facts = json.loads((here / "metadata.json").read_text(encoding="utf-8"))
_, height, width, _ = facts["input"]["shape"]

try:
    picture = ImageOps.exif_transpose(Image.open(sys.argv[1]))
except (OSError, ValueError) as error:
    sys.exit(f"{sys.argv[1]}: {error}")
bits = facts["input"].get("bit_depth")
if picture.mode.startswith("I;16") and bits is not None:
    grey = np.asarray(picture) * (255.0 / (2**bits - 1))
    if grey.max() > 255:
        sys.exit(f"{sys.argv[1]}: holds values of more than {bits} bits")
    picture = Image.fromarray(np.rint(grey).astype(np.uint8))
if picture.mode[0] in "IF":
    sys.exit(
        f"{sys.argv[1]}: has {picture.mode} pixels; this example reads 8-bit images, and 16-bit "
        "grey ones with a bit depth"
    )
image = np.asarray(picture.convert("RGB"))
wanted = facts["input"]["original_size"]
if wanted is not None and list(image.shape[:2]) != wanted:  # there is a region of interest
    sys.exit(f"{sys.argv[1]}: is {image.shape[:2]}; the model is for images of {wanted}")
shrunk = (min(width, image.shape[1]), min(height, image.shape[0]))
image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

onnxruntime.disable_telemetry_events()  # for builds that obey no variable
model = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
outputs = ["score", "anomaly_map", "label"]
score, anomaly_map, label = model.run(outputs, {"image": image[None]})

target = sys.argv[2] if len(sys.argv) == 3 else "anomaly_map.npy"
np.save(target, anomaly_map[0])
print(json.dumps({"score": float(score[0]), "label": int(label[0]), "map": target}))
