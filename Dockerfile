# The challenge's container of 2025 and later: no arguments, /input → /output, no network, any user.
#   docker build -t synth-inpaint .         (for the CPU: --build-arg TORCH=cpu)
#   docker run --rm --gpus all --network none -v "$PWD/in:/input" -v "$PWD/out:/output" synth-inpaint
# The base can be given by its digest: --build-arg BASE=python:3.12-slim@sha256:…
ARG BASE=python:3.12-slim
FROM $BASE
ARG TORCH=cu126
WORKDIR /app
COPY pyproject.toml constraints.txt core.lock ./
RUN pip install --no-cache-dir --no-deps --require-hashes -r core.lock \
    && pip install --no-cache-dir -c constraints.txt torch \
    --index-url "https://download.pytorch.org/whl/$TORCH"
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .
USER 10001
ENV HOME=/tmp MPLCONFIGDIR=/tmp PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["python", "testing/inference.py"]
