# The page and the API in a container: docker build -t ganscope . && docker compose up
# Weights are inside; nothing is fetched when it runs. torch is the build for CPUs.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/ganscope
ENV PATH=/opt/ganscope/bin:$PATH
RUN pip install "torch>=2.8" "torchvision>=0.23" --index-url "$TORCH_INDEX"
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
COPY cli ./cli
COPY datasets ./datasets
COPY detector ./detector
COPY generator ./generator
COPY web ./web
RUN pip install ".[web,formats,onnx,video]"

FROM python:3.12-slim
# What OpenCV's wheel links to.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin ganscope \
    && install --directory --owner ganscope /data
COPY --from=build /opt/ganscope /opt/ganscope
ENV PATH=/opt/ganscope/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GANSCOPE_CACHE=/tmp/ganscope \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/api/v1/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["ganscope"]
CMD ["serve", "--host", "0.0.0.0", "--no-browser"]
