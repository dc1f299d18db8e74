# pyimgano on the CPU, built from these sources and the package index alone:
#
#   docker build -t pyimgano .
#   docker run --rm pyimgano                                  # runs the demo
#   docker run --rm -v "$PWD/photos:/photos:ro" -v pyimgano-results:/work \
#       pyimgano check /photos/good /photos/new
#
# docs/offline.md tells more, also how to get the smaller build of PyTorch.

FROM python:3.12-slim AS build

# Where pip may look besides PyPI, for instance https://download.pytorch.org/whl/cpu, which has
# PyTorch without the libraries for GPUs.
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/pyimgano \
    && /opt/pyimgano/bin/pip install -c constraints.txt .


FROM python:3.12-slim

COPY --from=build /opt/pyimgano /opt/pyimgano
ENV PATH=/opt/pyimgano/bin:$PATH PYTHONUNBUFFERED=1

# A user who may write to the home folder, which has the cache, and to the working folder.
RUN useradd --create-home --uid 10001 --shell /usr/sbin/nologin pyimgano \
    && install -d -o pyimgano -g pyimgano /work
USER 10001
WORKDIR /work

ENTRYPOINT ["pyimgano"]
CMD ["benchmark", "--dataset", "demo"]
